"""
Evaluate the features of an encoder without training: weighted nearest neighbours, as in DINO. Each validation image
takes the class of its nearest training images.

    python examples/run_knn.py --model_name_or_path outputs/run_mae --train_dir images --validation_dir others
    ... --pooling mean --layer 8        the mean of the patch tokens after block 8
    ... --num_neighbours 5 10 20        several at once

Several processes (`accelerate launch`) share the work. `--output_file knn.json` writes the numbers.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from mae.arguments.flags import EVALUATION, POSITIVE, Arguments, flag
from mae.arguments.model import FeatureArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


logger = logging.getLogger("mae.examples")


@dataclass
class KNNArguments(Arguments):
    num_neighbours: list[int] | None = flag(
        None, "Numbers of neighbours that vote.", group=EVALUATION, default_words="20, as DINO reports"
    )
    temperature: float = flag(
        0.07, "A neighbour's vote has the weight exp(cosine / temperature).", group=EVALUATION, rule=POSITIVE
    )
    output_file: str | None = flag(
        None, "JSON file for the results.", group=EVALUATION, default_words="none", is_path=True
    )

    def check(self) -> None:
        super().check()
        if self.num_neighbours is not None and min(self.num_neighbours) < 1:
            raise UserError(f"--num_neighbours {min(self.num_neighbours)} must be at least 1.")


def main() -> None:
    arguments, options = parse_arguments(FeatureArguments, KNNArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    import torch

    from mae.cli.data import open_labelled_splits
    from mae.cli.model import load_encoder
    from mae.data.bands import bands_of
    from mae.evaluation.features import compute_features, log_skipped
    from mae.evaluation.neighbours import NUM_NEIGHBOURS, knn_scores
    from mae.training.accelerator import make_accelerator
    from mae.utils.files import write_json

    accelerator = make_accelerator(arguments)
    if options.output_file is not None and not Path(options.output_file).absolute().parent.is_dir():
        raise UserError(f"--output_file {options.output_file}: its folder does not exist.")
    encoder, report = load_encoder(arguments, accelerator)
    arguments.pooling = arguments.pooling or encoder.config.pooling
    logger.info(report)
    bands, minutes = bands_of(encoder.config), arguments.data_retry_minutes
    splits = open_labelled_splits(arguments, bands, minutes, arguments.max_eval_samples)
    if splits[0][1].is_multi_label:
        raise UserError("Neighbours vote for one class, but these images have several labels.")
    device, sides = accelerator.device, []
    for (source, labels), what in zip(splits, ("training", "validation")):
        mapped = compute_features(encoder, source, accelerator, what, **arguments.encoding)
        log_skipped(mapped)
        sides.append((mapped.outputs["features"].to(device), torch.from_numpy(labels.values[mapped.rows]).to(device)))
    (features, classes), (queries, wanted) = sides
    names, results = splits[0][1].names, []
    logger.info(f"{len(features):,} training images, {len(queries):,} validation images, {len(names)} classes")
    for k in options.num_neighbours or [NUM_NEIGHBOURS]:
        scores = knn_scores(features, classes, queries, len(names), k, options.temperature)
        hits = scores.topk(min(5, len(names)), dim=1).indices == wanted[:, None]
        result = {"num_neighbours": k, "accuracy": hits[:, 0].double().mean().item()}
        if len(names) > 5:
            result["accuracy_top5"] = hits.any(dim=1).double().mean().item()
        results.append(result)
        logger.info(", ".join(f"{name} {value:.4g}" for name, value in result.items()))
    if options.output_file is not None and accelerator.is_main_process:
        what = {"model": report.source, "layer": arguments.layer, "pooling": arguments.pooling}
        what |= {"temperature": options.temperature, "training_images": len(features), "images": len(queries)}
        write_json(Path(options.output_file), what | {"results": results})


if __name__ == "__main__":
    run_script(main, can_resume=False)
