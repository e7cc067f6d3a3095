"""
Write the features of images, one row per image: file, row, label if there are labels, and a vector.

    python examples/extract_features.py --model_name_or_path outputs/run_mae --train_dir my_images --output f.parquet
    ... --pooling mean --layer 8                      the mean of the patch tokens after block 8
    ... --dataset_name my_parquet --split validation  the validation images
    ... --output features.safetensors                 tensors `features`, `rows` and `labels`

The same images and model give the same file. Several processes (`accelerate launch`) share the work.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from mae.arguments.flags import EVALUATION, REQUIRED, Arguments, flag, one_of
from mae.arguments.model import FeatureArguments
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


logger = logging.getLogger("mae.examples")


@dataclass
class OutputArguments(Arguments):
    output: str = flag(
        REQUIRED, "File to write, .parquet or .safetensors. It must not exist.", group=EVALUATION, is_path=True
    )
    split: str = flag(
        "train",
        "Images to use: train, or validation.",
        group=EVALUATION,
        rule=one_of("train", "validation"),
    )


def main() -> None:
    arguments, output = parse_arguments(FeatureArguments, OutputArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    from mae.cli.data import open_splits
    from mae.cli.model import load_encoder
    from mae.data.bands import bands_of
    from mae.data.labels import read_labels
    from mae.data.subsets import origin_columns
    from mae.evaluation.features import compute_features, log_skipped
    from mae.training.accelerator import make_accelerator
    from mae.utils.files import atomic_write

    accelerator = make_accelerator(arguments)
    for name in ("train_val_split", "max_train_samples", "max_eval_samples"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} has no effect here: the features of all images of a split are written.")
    path = Path(output.output).expanduser()
    if path.suffix not in (".parquet", ".safetensors"):
        raise UserError(f"--output {output.output} must end in .parquet or .safetensors.")
    if path.exists() or not path.parent.is_dir():
        problem = "exists already" if path.exists() else "is in a folder that does not exist"
        raise UserError(f"--output {output.output} {problem}. Name another file.")

    encoder, report = load_encoder(arguments, accelerator)
    arguments.pooling = arguments.pooling or encoder.config.pooling
    logger.info(report)
    sources = open_splits(arguments, bands_of(encoder.config), arguments.data_retry_minutes)
    source = sources[output.split == "validation"]
    if source is None:
        raise UserError("--split validation: the data has no validation images.")
    labels = None
    try:
        labels = read_labels(source, f"--split {output.split}", arguments.label_column_name)
    except UserError as error:
        if arguments.label_column_name is not None:
            raise
        logger.info(f"Without labels: {error}")
    mapped = compute_features(encoder, source, accelerator, output.split, **arguments.encoding)
    log_skipped(mapped)
    if not accelerator.is_main_process:
        return
    features = mapped.outputs["features"]
    values = None if labels is None else labels.values[mapped.rows]
    what = {"model": report.source, "layer": arguments.layer, "pooling": arguments.pooling}
    what |= {} if labels is None else {"labels": labels.names}
    # In one entry, because safetensors writes several in any order.
    metadata = {"mae": json.dumps(what, ensure_ascii=False)}
    with atomic_write(path) as unfinished:
        if path.suffix == ".safetensors":
            tensors = {"features": features, "rows": torch.from_numpy(mapped.rows)}
            tensors |= {} if values is None else {"labels": torch.from_numpy(values)}
            save_file(tensors, unfinished, metadata=metadata)
        else:
            columns = origin_columns(source, mapped.rows)
            if values is not None:
                columns["label"] = values.tolist()
            flat = pa.array(features.flatten().numpy())
            table = pa.table(columns | {"features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1])})
            pq.write_table(table.replace_schema_metadata(metadata), unfinished)
    logger.info(f"{features.shape[0]:,} vectors of {features.shape[1]}: {path}")


if __name__ == "__main__":
    run_script(main, can_resume=False)
