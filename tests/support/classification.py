"""Labelled emoji and short classification runs, for the tests of several packages."""

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, List
from datasets import Image as ImageFeature

from tests.support.data import ROOT
from tests.support.runs import start


SCRIPT = ROOT / "examples" / "run_image_classification.py"

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48,
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32, "image_size": 32, "patch_size": 8,
}  # fmt: skip

SHORT = ["--per_device_train_batch_size", 8, "--max_steps", 12, "--logging_steps", 1, "--save_steps", 5]

SHORT += ["--lanes", 4, "--shuffle_buffer_size", 32, "--warmup_epochs", 0.2, "--dataloader_num_workers", 0]

NAMES = ["Activities", "Animals", "Flags", "Food", "Objects", "People", "Smileys", "Symbols", "Travel"]


def write_labelled(path, rows, several=False, row_group_size=16):
    feature = ClassLabel(names=NAMES)
    features = Features({"image": ImageFeature(), "label": List(feature) if several else feature})
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [[row["label"], (row["label"] + index) % 9] for index, row in enumerate(rows)]
    columns = {
        "image": [row["image"] for row in rows],
        "label": [sorted(set(some)) for some in labels] if several else [row["label"] for row in rows],
    }
    pq.write_table(pa.table(columns, schema=features.arrow_schema), path, row_group_size=row_group_size)


def classify(output_dir, *arguments):
    done = start("--output_dir", output_dir, *arguments, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    return done
