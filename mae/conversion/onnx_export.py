"""Write a model as ONNX, and compare it with the model."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from configuration_mae import to_pair
from mae.utils.errors import UserError
from modeling_mae import MAEForImageClassification, MAEForSemanticSegmentation, MAEModel, MAEPreTrainedModel


# Outputs of each class that can be exported, by the names that they have in transformers.
OUTPUTS: dict[type[MAEPreTrainedModel], tuple[str, ...]] = {
    MAEModel: ("last_hidden_state", "pooler_output"),
    MAEForImageClassification: ("logits",),
    MAEForSemanticSegmentation: ("logits",),
}
_LARGEST_FILE = 1_500_000_000  # bytes of weights; a protobuf file holds at most 2 GiB


class _Export(nn.Module):
    """A model with one input and a tuple of outputs."""

    def __init__(self, model: MAEPreTrainedModel):
        super().__init__()
        self.model = model
        # A segmenter takes images of any size without being asked.
        self.options = {} if isinstance(model, MAEForSemanticSegmentation) else {"interpolate_pos_encoding": True}

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values, **self.options)
        return tuple(outputs[name] for name in OUTPUTS[type(self.model)])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and its notes on operators, which no user can act on."""
    root, level = logging.getLogger(), logging.getLogger().level
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)


def check_installed() -> None:
    """Raises a `UserError` if a package of the extra `onnx` is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The export needs {error.name}. Install it with `pip install onnx onnxruntime onnxscript`."
        ) from None


def export_onnx(model: MAEPreTrainedModel, path: Path, any_size: bool = False, uint8: bool = False) -> None:
    """
    Write a model as ONNX. The input is `pixel_values` of shape (batch, channels, height, width), where the batch may
    have any size. The outputs are those of [`OUTPUTS`]. The metadata holds the mean and the std for the images, and
    the names of the classes.

    Args:
        model: One of [`OUTPUTS`], in float32 and evaluation mode.
        path: File to write. Weights of more than 1.5 GB go to a second file, whose name ends in .data.
        any_size: Whether images may have any size that is a multiple of a patch, instead of the model's alone.
        uint8: Whether the input is uint8, and normalised inside of the file, instead of normalised float32.

    Raises:
        UserError: for UPerNet and any size.
    """
    if any_size and isinstance(model, MAEForSemanticSegmentation) and model.config.segmentation_head == "upernet":
        # Of torch 2.14 and ONNX Runtime 1.32: the program has the sizes of its example in the pooling of the pyramid.
        raise UserError("--any_size: the pooling of UPerNet has a fixed size in ONNX. Use --image_size.")
    config, wrapped = model.config, _Export(model).eval()
    patch = to_pair(config.patch_size)
    height, width = size = to_pair(config.image_size)
    if any_size:  # another size than that of the positions: otherwise the program would not resample them
        height, width = height + patch[0], width + patch[1]
    images = torch.zeros(2, config.num_channels, height, width, dtype=torch.uint8 if uint8 else torch.float32)
    shapes: dict[int, object] = {0: torch.export.Dim("batch")}
    if any_size:
        shapes |= {2: patch[0] * torch.export.Dim("rows"), 3: patch[1] * torch.export.Dim("columns")}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            wrapped,
            (images,),
            dynamo=True,
            dynamic_shapes={"pixel_values": shapes},
            input_names=["pixel_values"],
            output_names=list(OUTPUTS[type(model)]),
            verbose=False,
        )
    facts = {"image_size": list(size), "patch_size": list(patch)}
    facts |= {"image_mean": config.image_mean, "image_std": config.image_std}
    if not isinstance(model, MAEModel):
        facts["id2label"] = config.id2label
    program.model.metadata_props["mae"] = json.dumps(facts, ensure_ascii=False)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    program.save(path, external_data=num_bytes > _LARGEST_FILE)


@torch.no_grad()
def compare_onnx(model: MAEPreTrainedModel, path: Path, images: Tensor) -> dict[str, tuple[float, float]]:
    """
    Run a file by ONNX Runtime on the CPU, and the model on the same images.

    Returns:
        For each output the largest difference, and the largest value.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS[type(model)]), {"pixel_values": images.numpy()})
    expected = _Export(model).eval()(images)
    return {
        name: ((torch.from_numpy(actual) - output).abs().max().item(), output.abs().max().item())
        for name, actual, output in zip(OUTPUTS[type(model)], found, expected)
    }
