"""Steps of examples/convert_checkpoint.py: check the output, report, compare, and describe a conversion."""

from dataclasses import replace
from pathlib import Path

import torch

from configuration_mae import MAEConfig, to_pair
from mae.conversion.comparison import compare_forward
from mae.conversion.hub_files import hub_name
from mae.conversion.layouts import LAYOUTS, spelling_of
from mae.conversion.loading import build, make_plan
from mae.conversion.report import LoadReport, count_by_part, describe_mapping
from mae.conversion.saving import full_state_dict, lost_in
from mae.conversion.weights import Weights, read_weights
from mae.hub.cards import converted_card
from mae.utils.errors import UserError
from modeling_mae import MAEPreTrainedModel


def checked_output(name: str) -> Path:
    """The output directory, which must not exist, or must be empty and not the working directory."""
    output = Path(name).expanduser()
    try:
        if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
            raise UserError(f"--output {name} exists already: name another directory.")
        if output.resolve() == Path.cwd():
            raise UserError(f"--output {name!r} is the working directory: name another one.")
    except OSError as error:
        raise UserError(f"--output {name} cannot be used: {error.strerror or error}.") from None
    return output


def print_mapping(model: MAEPreTrainedModel, report: LoadReport, weights: Weights, target: str) -> None:
    """Print what was read, where every tensor goes, and which are lost."""
    print(report)
    spellings = spelling_of(weights.tensors, report.layout), LAYOUTS[target][0]
    for line in describe_mapping(full_state_dict(model), report.new, *spellings):
        print(f"    {line}")
    lost = lost_in(model, target)
    if lost:
        print(f"  left out, as {target} has no place for it: {'; '.join(count_by_part(lost))}")


def compare(action: str, model: MAEPreTrainedModel, tensors: dict[str, torch.Tensor], layout: str) -> None:
    """Compare with the implementation that the tensors are for, or with another one that is installed."""
    try:
        name, difference, largest = compare_forward(model, tensors, layout)
    except LookupError as error:
        print(f"  check of the model {action}: none; {error}")
        return
    print(f"  check of the model {action}: outputs up to {largest:.2f} differ from {name}'s by {difference:.1e}")
    if not difference <= 1e-4 * max(largest, 1):
        raise UserError(f"The model {action} differs from {name} (see above): nothing was written.")


def check_written(folder: Path, model: MAEPreTrainedModel, target: str) -> int:
    """Read the output back, check that it is the model bit for bit, and compare it; returns its number of tensors."""
    written = read_weights(next(folder.glob("*.pth"), folder))
    plan = make_plan(written, layout=target)
    again, expected = build(plan), full_state_dict(model)
    for name, tensor in full_state_dict(again).items():
        if not torch.equal(tensor, expected[name]):
            raise UserError(f"{name} was not written as it is: nothing was kept. This is a defect of the converter.")
    print("  check of the files written: read back, they are the same bit for bit")
    if target in ("timm", "vit_mae"):
        compare("written", again, written.tensors, target)
    return len(written.tensors)


def fits_processor(model: MAEPreTrainedModel, weights: Weights) -> bool:
    """Whether the input has a processor, and it prepares images as the model takes them."""
    if weights.processor is None:
        return False
    own, config = MAEConfig.from_dict(weights.config), model.config
    return to_pair(own.image_size) == to_pair(config.image_size) and own.num_channels == config.num_channels


def make_card(model: MAEPreTrainedModel, source: str, report: LoadReport) -> str:
    path = Path(source).expanduser()
    on_the_hub = not path.exists()
    name = hub_name(source) if on_the_hub else path.resolve().name  # not the path, which may be confidential
    return converted_card(model, name, name if on_the_hub else None, str(replace(report, source=name)))
