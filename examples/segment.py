"""
Segment images of any size with a trained segmenter: one mask per image, and the image coloured by it.

    python examples/segment.py --model outputs/run_semantic_segmentation --images my_images --output masks
    ... --images slide.tif            one file, which may be large: it is segmented in overlapping windows
    ... --overlap 0.5                 larger overlap: smoother, slower

A mask is a PNG with a palette, whose values are the numbers of the classes. classes.csv names them. One image is in
memory at a time. Images whose masks exist are left out, so that the same command resumes. Several processes
(`accelerate launch`) share the work.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from mae.arguments.flags import AT_LEAST_1, BELOW_1, DATA, EVALUATION, HARDWARE, MODEL, REQUIRED, flag
from mae.arguments.model import InferenceArguments
from mae.arguments.run import HardwareArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError
from mae.utils.text import listed


logger = logging.getLogger("mae.examples")


@dataclass(kw_only=True)
class SegmentArguments(InferenceArguments, HardwareArguments):
    images: str = flag(REQUIRED, "Image file, or folder of images at any depth.", group=DATA, is_path=True)
    output: str = flag("outputs/segment", "Folder for the masks.", group=DATA, is_path=True)
    id2label: str | None = flag(
        None,
        "JSON file with the colors of the classes, as for training.",
        group=MODEL,
        default_words="colors of this package",
        is_path=True,
    )
    overlap: float = flag(
        1 / 3,
        "Smallest share of a window that it has in common with the next one.",
        group=EVALUATION,
        default_words="1/3",
        rule=BELOW_1,
    )
    overlay: bool = flag(True, "Also write each image coloured by its mask, as NAME_overlay.png.", group=EVALUATION)
    overwrite: bool = flag(False, "Segment images again whose masks exist.", group=EVALUATION)
    batch_size: int = flag(8, "Windows per forward pass.", group=HARDWARE, rule=AT_LEAST_1)


def main() -> None:
    (arguments,) = parse_arguments(SegmentArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    import torch
    from PIL import Image

    from mae.cli.segmentation import find_images, load_segmenter, read_colours
    from mae.data.bands import bands_of
    from mae.data.decoding import DecodingError
    from mae.evaluation.segmenter import Segmenter
    from mae.training.accelerator import make_accelerator
    from mae.utils.errors import DataError
    from mae.utils.files import write_table
    from mae.utils.progress import ProgressBar

    accelerator = make_accelerator(arguments)
    model, report = load_segmenter(arguments.model, arguments.model_revision, arguments.data_retry_minutes)
    logger.info(report)
    images = find_images(arguments.images, bands_of(model.config))
    output, place = Path(arguments.output), Path(arguments.images)
    if output.resolve().is_relative_to(place.resolve()) or (
        place.is_file() and output.resolve() == place.resolve().parent
    ):
        raise UserError(f"--output {output} is in the folder of the images. Name another one, for the masks alone.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror or error}.") from None
    colours = None if arguments.id2label is None else read_colours(arguments.id2label, model.config)
    segmenter = Segmenter(
        model.to(accelerator.device).eval(),
        output,
        colours,
        arguments.overlap,
        arguments.batch_size,
        arguments.overlay,
    )
    # Pillow's limit is against files of strangers. These are named one by one, and may be large.
    Image.MAX_IMAGE_PIXELS = None
    own = dict(list(images.items())[accelerator.process_index :: accelerator.num_processes])
    left = {name: path for name, path in own.items() if arguments.overwrite or not segmenter.mask_path(name).exists()}
    if len(left) < len(own):
        logger.info(f"{len(own) - len(left):,} masks are in {output} already. --overwrite makes them again.")
    skipped = []
    with torch.no_grad(), accelerator.autocast():
        for name, path in ProgressBar(left.items(), unit="image"):
            try:
                segmenter(name, path)
            except DecodingError as error:
                skipped.append(path)
                logger.warning(f"Skipped an unreadable image, {path}: {error}")
    if accelerator.is_main_process:
        table = {"number": range(len(segmenter.names)), "class": segmenter.names}
        table["color"] = ["#" + bytes(colour).hex() for colour in segmenter.palette]
        write_table(output / "classes.csv", table)
    if skipped and len(skipped) == len(left):
        raise DataError(f"None of the {len(left):,} images can be read.")
    shares = segmenter.pixels / max(segmenter.pixels.sum(), 1)
    found = listed([f"{name} {share:.1%}" for name, share in zip(segmenter.names, shares)], most=10)
    logger.info(f"{len(left) - len(skipped):,} masks are in {output}. Shares of the pixels: {found}")


if __name__ == "__main__":
    run_script(main, can_resume=False)
