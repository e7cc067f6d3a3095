"""
Write a model as ONNX, and compare ONNX Runtime with the model.

    python examples/export_onnx.py --model outputs/run_image_classification --output classifier.onnx
    ... --image_size 256 384   images of another size than the model's
    ... --any_size             images of every size that is a multiple of a patch
    ... --uint8                an input of uint8 images, which the file normalises itself

A model of pre-training gives its encoder. The batch may have any size. The file's metadata holds the mean and the std
for the images, and the names of the classes. It needs the extra `onnx`.
"""

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mae.arguments.flags import HEIGHT_AND_WIDTH, MODEL, REQUIRED, flag
from mae.arguments.model import InferenceArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


logger = logging.getLogger("mae.examples")


@dataclass(kw_only=True)
class ExportArguments(InferenceArguments):
    output: str = flag(REQUIRED, "File to write, .onnx. It must not exist.", group=MODEL, is_path=True)
    image_size: list[int] | None = flag(
        None,
        "Image size in pixels: one side, or height and width. Positions are resampled.",
        group=MODEL,
        default_words="the model's",
        rule=HEIGHT_AND_WIDTH,
    )
    any_size: bool = flag(False, "Accept images of every size that is a multiple of a patch.", group=MODEL)
    uint8: bool = flag(False, "Accept uint8 images, and normalise them inside of the file.", group=MODEL)


def main() -> None:
    (arguments,) = parse_arguments(ExportArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    import torch

    from configuration_mae import to_pair, to_size
    from mae.conversion.loading import load_checkpoint
    from mae.conversion.onnx_export import OUTPUTS, check_installed, compare_onnx, export_onnx
    from modeling_mae import MAEForPreTraining, MAEModel

    path = Path(arguments.output)
    if path.suffix != ".onnx":
        raise UserError(f"--output {path} must end in .onnx.")
    if path.exists() or not path.parent.is_dir():
        problem = "exists already" if path.exists() else "is in a folder that does not exist"
        raise UserError(f"--output {path} {problem}. Name another file.")
    check_installed()
    options = {"revision": arguments.model_revision, "dtype": torch.float32}
    if arguments.image_size is not None:
        options["image_size"] = to_size(arguments.image_size)
    model, report = load_checkpoint(arguments.model, **options)
    if isinstance(model, MAEForPreTraining):
        model, report = load_checkpoint(arguments.model, MAEModel, **options)
    logger.info(report)
    if type(model) not in OUTPUTS:
        known = ", ".join(cls.__name__ for cls in OUTPUTS)
        raise UserError(f"--model {arguments.model} is a {type(model).__name__}. The export takes {known}.")

    config, generator = model.config, torch.Generator().manual_seed(0)
    size = to_pair(config.image_size)
    sizes = [size, tuple(2 * step for step in to_pair(config.patch_size))] if arguments.any_size else [size]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        export_onnx(model, unfinished, arguments.any_size, arguments.uint8)
        for batch, (height, width) in zip((1, 3), 2 * sizes):
            images = torch.randn(batch, config.num_channels, height, width, generator=generator)
            if arguments.uint8:
                images = images.mul(50).add(128).clamp(0, 255).to(torch.uint8)
            for name, (difference, largest) in compare_onnx(model, unfinished, images).items():
                shape = " x ".join(map(str, images.shape))
                logger.info(f"{name} of {shape}: up to {largest:.3g}, ONNX Runtime differs by up to {difference:.1e}")
                if not difference <= 1e-3 * max(largest, 1):
                    raise UserError("ONNX Runtime differs from the model (see above). Nothing was written.")
        for written in sorted(Path(folder).iterdir(), reverse=True):  # the data before the file that names it
            os.replace(written, path.parent / written.name)
    logger.info(f"{path.stat().st_size / 1e6:,.1f} MB: {path}")


if __name__ == "__main__":
    run_script(main, can_resume=False)
