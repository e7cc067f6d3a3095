"""
Converts Masked Autoencoder checkpoints between this model, the official code, timm and transformers' ViTMAE.

    python examples/convert_checkpoint.py --input mae_pretrain_vit_base.pth --output outputs/vit_base
    python examples/convert_checkpoint.py --input facebook/vit-mae-base --output outputs/vit_base
    python examples/convert_checkpoint.py --input outputs/run_mae --output outputs/for_timm --to timm

Nothing has to be converted in order to be trained or loaded: `--model_name_or_path` and
`mae.conversion.loading.load_checkpoint`
take every layout. Exit code 2 for what cannot be converted, told in one line; the output is then not touched.
"""

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from configuration_mae import MAEConfig, to_pair
from mae.arguments.overrides import parse_overrides
from mae.cli.parser import parse_arguments
from mae.conversion.comparison import compare_forward
from mae.conversion.layouts import LAYOUTS, spelling_of
from mae.conversion.loading import build, make_plan
from mae.conversion.report import LoadReport, describe_mapping, summarise
from mae.conversion.saving import check_expressible, fold_head_norm, full_state_dict, lost_in, save_checkpoint
from mae.conversion.weights import Weights, hub_name, read_weights
from mae.hub.cards import converted_card, write_card
from mae.utils.errors import UserError, first_line
from mae.utils.files import PROCESSOR_FILE
from modeling_mae import MAEPreTrainedModel


@dataclass
class ConversionArguments:
    input: str = field(metadata={"help": "A file (.pth, .pt, .bin, .safetensors), a directory or a model on the Hub."})
    output: str = field(metadata={"help": "Directory to write; it must not exist, or be empty."})
    from_layout: str = field(
        default="auto", metadata={"aliases": ["--from"], "help": f"auto, or {', '.join(LAYOUTS)}: what the input is."}
    )
    to_layout: str = field(default="mae", metadata={"aliases": ["--to"], "help": f"{', '.join(LAYOUTS)}."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    allow_pickle: bool = field(
        default=False,
        metadata={"help": "Read a model on the Hub that has no safetensors from its pickle; no code in it is run."},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Settings that the input does not say, or that are to change: num_attention_heads=3,"
            "decoder_num_attention_heads=4,norm_pix_loss=true"
        },
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Pixels, a side or height and width: resamples the positions."}
    )
    inflate_channels: str | None = field(
        default=None,
        metadata={"help": "How the input gets another num_channels: mean of its channels, or repeat them."},
    )

    def __post_init__(self) -> None:
        for name, layout in (("from", self.from_layout), ("to", self.to_layout)):
            if layout not in LAYOUTS and (name, layout) != ("from", "auto"):
                raise UserError(f"--{name} {layout} is unknown: choose one of {', '.join(LAYOUTS)}.")


def main() -> None:
    (arguments,) = parse_arguments(ConversionArguments, description=__doc__)
    disable_progress_bar()
    output = checked_output(arguments.output)
    overrides = parse_overrides(arguments.config_overrides)
    if arguments.image_size is not None:
        overrides["image_size"] = arguments.image_size[0] if len(arguments.image_size) == 1 else arguments.image_size
    layout, target = (None if arguments.from_layout == "auto" else arguments.from_layout), arguments.to_layout
    weights = read_weights(arguments.input, arguments.model_revision, arguments.allow_pickle)
    plan = make_plan(weights, layout=layout, inflate_channels=arguments.inflate_channels, **overrides)
    model, found = build(plan), plan.found
    if target != "mae":
        fold_head_norm(model)
    check_expressible(model, target)

    print(found)
    spellings = spelling_of(weights.tensors, found.layout), LAYOUTS[target][0]
    for line in describe_mapping(full_state_dict(model), found.new, *spellings):
        print(f"    {line}")
    lost = lost_in(model, target)
    if lost:
        print(f"  left out, as {target} has no place for it: {'; '.join(summarise(lost))}")
    # What changes the function cannot be compared: what was read is.
    compare("read", build(plan.original) if plan.original else model, weights.tensors, found.layout)

    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        kept = found.layout == target == "mae" and not {"image_mean", "image_std"} & overrides.keys()
        if kept and weights.processor is not None and fits_processor(model, weights):
            (unfinished / PROCESSOR_FILE).write_text(json.dumps(weights.processor, indent=2) + "\n", encoding="utf-8")
        save_checkpoint(model, unfinished, target)
        if target == "mae":
            write_card(unfinished, make_card(model, arguments.input, found))
        written = read_weights(next(unfinished.glob("*.pth"), unfinished))
        again = build(make_plan(written, layout=target))
        check_equal(again, model)
        print("  check of what was written: read back, it is the same bit for bit")
        if target in ("timm", "vit_mae"):
            compare("written", again, written.tensors, target)
        if output.exists():
            output.rmdir()
        os.replace(unfinished, output)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"--output {output} cannot be written: {reason}.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{len(written.tensors)} tensors in {target} layout: {output}")


def checked_output(name: str) -> Path:
    """A directory that can be made: it does not exist, or is empty and not the present one."""
    output = Path(name).expanduser()
    try:
        if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
            raise UserError(f"--output {name} exists already: name another directory.")
        if output.resolve() == Path.cwd():
            raise UserError(f"--output {name!r} is the present directory: name another one.")
    except OSError as error:
        raise UserError(f"--output {name} cannot be used: {error.strerror or error}.") from None
    return output


def compare(what: str, model: MAEPreTrainedModel, tensors: dict[str, torch.Tensor], layout: str) -> None:
    """Compares with the implementation that the tensors are for, or with another one that is installed."""
    try:
        name, difference, largest = compare_forward(model, tensors, layout)
    except LookupError as error:
        print(f"  check of what was {what}: none; {error}")
        return
    print(f"  check of what was {what}: outputs up to {largest:.2f} differ from those of {name} by {difference:.1e}")
    if not difference <= 1e-4 * max(largest, 1):
        raise UserError(f"What was {what} does not do what {name} does with it (see above): nothing was written.")


def check_equal(again: MAEPreTrainedModel, model: MAEPreTrainedModel) -> None:
    """What is read back must be the model bit for bit."""
    expected = full_state_dict(model)
    for name, tensor in full_state_dict(again).items():
        if not torch.equal(tensor, expected[name]):
            raise UserError(f"{name} was not written as it is: nothing was kept. This is a defect of the converter.")


def fits_processor(model: MAEPreTrainedModel, weights: Weights) -> bool:
    """Whether the processor of a directory of ours is for images as the model takes them."""
    own, config = MAEConfig.from_dict(weights.config), model.config
    return to_pair(own.image_size) == to_pair(config.image_size) and own.num_channels == config.num_channels


def make_card(model: MAEPreTrainedModel, source: str, found: LoadReport) -> str:
    path = Path(source).expanduser()
    on_the_hub = not path.exists()
    name = hub_name(source) if on_the_hub else path.resolve().name  # where it lies is nobody's business
    return converted_card(model, name, name if on_the_hub else None, str(replace(found, source=name)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleaning up on the way out
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        sys.exit(130)
