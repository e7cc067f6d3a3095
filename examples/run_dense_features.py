"""
Evaluate an encoder for segmentation without training it: the classes of labelled patches predict those of the pixels
of validation images, by nearest neighbours and by a logistic regression.

    python examples/run_dense_features.py --model_name_or_path outputs/run_mae \\
        --train_dir images --train_mask_dir masks --train_val_split 0.2
    ... --methods knn                                    nearest neighbours alone
    ... --layer 8 --max_train_patches 50000              features after block 8, of more patches

Data and masks are named as for run_semantic_segmentation.py. A training patch has the class that most of its pixels
have. Validation images are evaluated whole, in overlapping windows. The folder --output_dir gets results.json, and one
folder per method with IoU of each class, confusion matrix and overlays.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from mae.arguments.flags import AT_LEAST_1, BELOW_1, CHECKPOINTS, EVALUATION, POSITIVE, Arguments, flag
from mae.arguments.masks import MaskedDataArguments
from mae.arguments.model import EncoderArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


logger = logging.getLogger("mae.examples")
METHODS = ("knn", "logistic")


@dataclass
class DenseFeatureArguments(MaskedDataArguments, EncoderArguments):
    """Flags that choose a frozen encoder, images and masks."""


@dataclass
class MethodArguments(Arguments):
    """Flags of the methods."""

    output_dir: str = flag("outputs/run_dense_features", "Directory for the results.", group=CHECKPOINTS, is_path=True)
    methods: list[str] | None = flag(
        None, "Methods: knn, logistic, or both.", group=EVALUATION, default_words="knn logistic"
    )
    max_train_patches: int = flag(
        20_000, "Number of labelled patches, equally many from each image.", group=EVALUATION, rule=AT_LEAST_1
    )
    num_neighbours: int = flag(20, "Number of neighbours that vote.", group=EVALUATION, rule=AT_LEAST_1)
    temperature: float = flag(
        0.07, "A neighbour's vote has the weight exp(cosine / temperature).", group=EVALUATION, rule=POSITIVE
    )
    regularization_c: float = flag(
        1.0, "Inverse strength of the L2 penalty of the logistic regression.", group=EVALUATION, rule=POSITIVE
    )
    eval_overlap: float = flag(
        0.0,
        "Smallest share of a window that it has in common with the next one, when validation images are larger.",
        group=EVALUATION,
        rule=BELOW_1,
    )

    def check(self) -> None:
        super().check()
        self.methods = list(dict.fromkeys(self.methods or METHODS))
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"--methods {name} must be one of {', '.join(METHODS)}.")


def main() -> None:
    flags, options = parse_arguments(DenseFeatureArguments, MethodArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    from mae.cli.model import load_encoder
    from mae.cli.segmentation import open_masked_splits
    from mae.data.bands import bands_of
    from mae.data.loader import choose_num_workers
    from mae.evaluation.dense_features import PatchSegmenter, collect_patches, knn_scorer, logistic_scorer
    from mae.evaluation.evaluator import EvaluationContext
    from mae.evaluation.segmentation import SegmentationEvaluator
    from mae.training.accelerator import make_accelerator
    from mae.utils.files import write_json
    from mae.utils.progress import ProgressBar

    accelerator = make_accelerator(flags)
    encoder, report = load_encoder(flags, accelerator)
    logger.info(report)
    minutes, num_workers = (
        flags.data_retry_minutes,
        choose_num_workers(flags.dataloader_num_workers, accelerator.device),
    )
    bands, sizes = bands_of(encoder.config), (flags.max_train_samples, flags.max_eval_samples)
    data = open_masked_splits(flags, flags, bands, minutes, *sizes)
    for note in data.notes:
        logger.info(note)
    reading = {"batch_size": flags.batch_size, "num_workers": num_workers, "retry_minutes": minutes}

    def progress(what: str, count: int) -> ProgressBar:
        return ProgressBar(total=count, desc=what, unit="image")

    def tick(bar: ProgressBar) -> bool:
        """Called before each image of this rank."""
        bar.update(accelerator.num_processes)
        return False

    with progress("patches of training images", len(data.train[0])) as bar, accelerator.autocast():
        patches = collect_patches(
            encoder,
            *data.train,
            data.coding,
            options.max_train_patches,
            flags.layer,
            flags.seed,
            should_stop=lambda: tick(bar),
            **reading,
        )
    names, folder = data.coding.names, Path(options.output_dir)
    counts = patches.classes.bincount(minlength=len(names)).tolist()
    described = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts))
    logger.info(f"{len(patches.classes):,} training patches: {described}")
    results = []
    for method in options.methods:
        if method == "knn":
            score = knn_scorer(patches, len(names), options.num_neighbours, options.temperature)
        else:
            score = logistic_scorer(patches, len(names), options.regularization_c)
        segmenter = PatchSegmenter(encoder, score, len(names), flags.layer).eval()
        evaluate = SegmentationEvaluator(*data.validation, data.coding, None, overlap=options.eval_overlap, **reading)
        if accelerator.is_main_process:
            (folder / method).mkdir(parents=True, exist_ok=True)
        with progress(method, len(data.validation[0])) as bar, accelerator.autocast():
            found = evaluate(segmenter, EvaluationContext(0, 0.0, folder / method, lambda: tick(bar)))
        # The loss is left out: votes are no logits.
        scores = {name.removeprefix("eval_"): value for name, value in found.values.items() if name != "eval_loss"}
        logger.info(f"{method}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
        results.append({"method": method, **scores})
    if accelerator.is_main_process:
        what = {"model": report.source, "layer": flags.layer, "training_patches": len(patches.classes)}
        what |= {"training_images": len(data.train[0]), "images": len(data.validation[0]), "classes": list(names)}
        write_json(folder / "results.json", what | {"results": results})
        logger.info(f"Results are in {folder}")


if __name__ == "__main__":
    run_script(main, can_resume=False)
