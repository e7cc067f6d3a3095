"""
Convert Masked Autoencoder checkpoints between this package, the official code, timm and transformers' ViTMAE.

    python examples/convert_checkpoint.py --input mae_pretrain_vit_base.pth --output outputs/vit_base
    python examples/convert_checkpoint.py --input facebook/vit-mae-base --output outputs/vit_base
    python examples/convert_checkpoint.py --input outputs/run_mae --output outputs/for_timm --to timm

Training and loading need no conversion: `--model_name_or_path` and `mae.load_checkpoint` take every layout.

Exit codes: 0 converted; 1 an error of the file system; 2 the arguments are invalid, or the checkpoint cannot be
converted; 130 or 143 stopped by a signal. Unless the code is 0, nothing is written.
"""

import os
import shutil
import signal
import sys
from dataclasses import dataclass
from functools import partial

from mae.arguments.flags import HEIGHT_AND_WIDTH, MODEL, REQUIRED, Arguments, flag
from mae.arguments.overrides import parse_overrides
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError, first_line


LAYOUTS = ("mae", "official", "timm", "vit_mae")  # those of mae/conversion/layouts.py
# Chapters of --help.
_files = partial(flag, group="files")
_model = partial(flag, group=MODEL)


@dataclass
class ConversionArguments(Arguments):
    input: str = _files(
        REQUIRED, "A file (.pth, .pt, .bin, .ckpt, .safetensors), a directory or a model on the Hub.", is_path=True
    )
    output: str = _files(REQUIRED, "Directory to write. It must not exist, or be empty.", is_path=True)
    from_layout: str = _files("auto", f"Layout of the input: auto, {', '.join(LAYOUTS)}.", aliases=("--from",))
    to_layout: str = _files("mae", f"Layout of the output: {', '.join(LAYOUTS)}.", aliases=("--to",))
    state_key: str | None = _files(
        None,
        "Entry of a torch file that holds the weights, such as teacher.",
        default_words="model or state_dict, or the only one",
    )
    prefix: str | None = _files(
        None,
        "Prefix of the weights' names, such as backbone; tensors without it are left out.",
        default_words="the prefix that all names have in common",
    )
    model_revision: str | None = _files(None, "Branch, tag or commit of a model on the Hub.", default_words="main")
    allow_pickle: bool = _files(
        False, "Read the pickle of a model on the Hub that has no safetensors. No code in the pickle is run."
    )
    config_overrides: str | None = _model(
        None,
        "Fields of the configuration that the input does not state, or that you change, for example "
        "num_attention_heads=3,decoder_num_attention_heads=4,norm_pix_loss=true.",
        default_words="none",
    )
    image_size: list[int] | None = _model(
        None,
        "Image size in pixels: one side, or height and width. Positions are resampled.",
        default_words="the input's",
        rule=HEIGHT_AND_WIDTH,
    )
    inflate_channels: str | None = _model(
        None,
        "How the input gets another num_channels: mean of its channels, or repeat them.",
        default_words="not at all",
    )

    def check(self) -> None:
        super().check()
        for name, layout in (("from", self.from_layout), ("to", self.to_layout)):
            if layout not in LAYOUTS and (name, layout) != ("from", "auto"):
                raise UserError(f"--{name} {layout} is unknown: choose one of {', '.join(LAYOUTS)}.")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that unfinished files are removed
    (arguments,) = parse_arguments(ConversionArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    from safetensors import SafetensorError

    from configuration_mae import to_size
    from mae.cli.conversion import check_written, checked_output, compare, fits_processor, make_card, print_mapping
    from mae.conversion.loading import build, make_plan
    from mae.conversion.saving import check_expressible, fold_head_norm, save_checkpoint
    from mae.conversion.weights import read_weights
    from mae.hub.cards import write_card
    from mae.utils.files import PROCESSOR_FILE, UNFINISHED, write_json

    output, target = checked_output(arguments.output), arguments.to_layout
    overrides = parse_overrides(arguments.config_overrides)
    if arguments.image_size is not None:
        overrides["image_size"] = to_size(arguments.image_size)
    weights = read_weights(
        arguments.input,
        arguments.model_revision,
        arguments.allow_pickle,
        state_key=arguments.state_key,
        prefix=arguments.prefix,
    )
    layout = None if arguments.from_layout == "auto" else arguments.from_layout
    plan = make_plan(weights, layout=layout, inflate_channels=arguments.inflate_channels, **overrides)
    model = build(plan)
    if target != "mae":
        fold_head_norm(model)
    check_expressible(model, target)

    print_mapping(model, plan.report, weights, target)
    # A change that the user asked for changes the outputs: the checkpoint as it is gets compared.
    compare("read", build(plan.original) if plan.original else model, weights.tensors, plan.report.layout)

    unfinished = output.with_name(f"{output.name}.{os.getpid()}{UNFINISHED}")
    try:
        unfinished.mkdir(parents=True)
        keeps_statistics = not {"image_mean", "image_std"} & overrides.keys()
        if plan.report.layout == target == "mae" and keeps_statistics and fits_processor(model, weights):
            write_json(unfinished / PROCESSOR_FILE, weights.processor)
        save_checkpoint(model, unfinished, target)
        if target == "mae":
            write_card(unfinished, make_card(model, arguments.input, plan.report))
        num_written = check_written(unfinished, model, target)
        if output.exists():
            output.rmdir()
        os.replace(unfinished, output)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"--output {output} cannot be written: {reason}.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{num_written} tensors in {target} layout: {output}")


if __name__ == "__main__":
    run_script(main, can_resume=False)
