"""
Draw what a model makes of images: reconstructions of masked images, its features, or nearest neighbours.

    python examples/reconstruct.py --model outputs/run_mae                    the embedded emoji
    ... --images my_images --mask_ratio 0.5 0.75 0.9                          several masks (Figure 4 of the paper)
    ... --images photo.jpg --num_draws 4                                      several draws of one mask ratio
    ... --images photo.jpg --pictures features                                attention of cls, colours of features
    ... --images my_images --pictures neighbours                              the most similar images of each

The model is any checkpoint that this package reads, here or on the Hub. Images keep their shape: each is resized to as
many pixels as the model's images have. --images takes files, a folder, or a dataset here or on the Hub.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from mae.arguments.flags import AT_LEAST_1, DATA, EVALUATION, HARDWARE, MODEL, Rule, flag, one_of
from mae.arguments.model import InferenceArguments
from mae.arguments.run import HardwareArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


logger = logging.getLogger("mae.examples")

NUM_NEIGHBOURS = 6


@dataclass(kw_only=True)
class ReconstructArguments(InferenceArguments, HardwareArguments):
    allow_pickle: bool = flag(
        False, "Read a pickle from the Hub, with weights_only, if there are no safetensors.", group=MODEL
    )
    images: list[str] | None = flag(
        None,
        "Image files, a folder of images, or a dataset here or on the Hub.",
        group=DATA,
        default_words="the embedded emoji",
        is_path=True,
    )
    num_images: int = flag(8, "Number of images to draw.", group=DATA, rule=AT_LEAST_1)
    max_images: int = flag(2000, "Number of images among which neighbours are searched.", group=DATA, rule=AT_LEAST_1)
    pictures: str = flag(
        "reconstruction",
        "What is drawn: reconstruction, features (attention and principal components), or neighbours.",
        group=EVALUATION,
        rule=one_of("reconstruction", "features", "neighbours"),
    )
    mask_ratio: list[float] | None = flag(
        None, "Shares of the patches to remove, each in (0, 1).", group=EVALUATION, default_words="the model's"
    )
    masking: str | None = flag(
        None,
        "Which patches are removed: random, block or grid.",
        group=EVALUATION,
        default_words="as in training",
        rule=one_of("random", "block", "grid"),
    )
    num_draws: int = flag(1, "Number of masks for each mask ratio.", group=EVALUATION, rule=AT_LEAST_1)
    paste: bool = flag(True, "Show visible patches as they are, not as the model predicts them.", group=EVALUATION)
    seed: int = flag(0, "Seed of the images and masks.", group=EVALUATION)
    output: str = flag(
        "outputs/reconstruct.png",
        "PNG file to write.",
        group=EVALUATION,
        is_path=True,
        rule=Rule("must end in .png", lambda path: path.lower().endswith(".png")),
    )
    batch_size: int = flag(64, "Images per forward pass, for neighbours.", group=HARDWARE, rule=AT_LEAST_1)

    def check(self) -> None:
        super().check()
        for ratio in self.mask_ratio or ():
            if not 0 < ratio < 1:
                raise UserError(f"--mask_ratio {ratio} must be between 0 and 1.")


def main() -> None:
    (arguments,) = parse_arguments(ReconstructArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    from mae.cli.pictures import draw_features, draw_neighbours, draw_reconstructions, load_model, open_images
    from mae.training.accelerator import make_accelerator

    accelerator = make_accelerator(arguments)
    model, report = load_model(arguments, arguments.pictures == "reconstruction")
    logger.info(report)
    model = model.to(accelerator.device).eval()
    source = open_images(arguments.images, model.config, arguments.data_retry_minutes)
    path = Path(arguments.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with accelerator.autocast():
            if arguments.pictures == "neighbours":
                draw_neighbours(model, source, arguments, accelerator, NUM_NEIGHBOURS, path)
            else:
                draw = draw_reconstructions if arguments.pictures == "reconstruction" else draw_features
                draw(model, source, arguments, path)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}.") from None
    logger.info(f"{path} is written.")


if __name__ == "__main__":
    run_script(main, can_resume=False)
