"""examples/extract_features.py, as a user starts it."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.support.classification import SIZES
from tests.support.data import ROOT
from tests.support.features import features_of, rows_of, save_encoder
from tests.support.runs import run, start


EXTRACT = ROOT / "examples" / "extract_features.py"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("pretrained") / "model", SIZES)


def test_features_are_those_of_transformers(pretrained, tmp_path):
    common = ["--model_name_or_path", pretrained, "--split", "validation"]
    done = start(*common, "--output", tmp_path / "f.parquet", script=EXTRACT)
    assert done.returncode == 0 and "190 vectors of 24" in done.stdout, done.stderr
    rows = rows_of("test")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column("row").to_pylist() == list(range(190)) and set(table.column("file").to_pylist()) == {
        "test-00000-of-00001.parquet"
    }
    assert table.column("label").to_pylist() == [row["label"] for row in rows]
    assert json.loads(table.schema.metadata[b"mae"])["labels"][2] == "Flags"
    expected = features_of(pretrained, rows[:10])
    found = torch.tensor(table.column("features").to_pylist())
    torch.testing.assert_close(
        found[:10], torch.cat([each.last_hidden_state[:, 0] for each in expected]), rtol=0, atol=1e-5
    )

    # Any layer, the mean of the patches, the other format, other batches; two processes.
    more = ["--layer", -2, "--pooling", "mean", "--output"]
    done = start(*common, *more, tmp_path / "f.safetensors", "--batch_size", 7, script=EXTRACT)
    assert done.returncode == 0, done.stderr
    tensors = load_file(tmp_path / "f.safetensors")
    layer = torch.cat([each.hidden_states[-2][:, 1:].mean(dim=1) for each in expected])
    torch.testing.assert_close(tensors["features"][:10], layer, rtol=0, atol=1e-5)
    assert tensors["labels"].tolist() == [row["label"] for row in rows] and tensors["rows"].tolist() == list(
        range(190)
    )
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        what = json.loads(file.metadata()["mae"])
    assert what["pooling"] == "mean" and what["layer"] == -2 and what["labels"][2] == "Flags"
    done = start(*common, *more, tmp_path / "again.safetensors", "--batch_size", 7, script=EXTRACT)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "f.safetensors").read_bytes()
    done = run(*common, *more, tmp_path / "two.safetensors", "--batch_size", 7, processes=2, script=EXTRACT)
    assert done.returncode == 0, done.stderr
    two = load_file(tmp_path / "two.safetensors")
    assert two["rows"].tolist() == list(range(190))
    torch.testing.assert_close(two["features"], tensors["features"], rtol=0, atol=1e-5)
    done = start(*common, "--output", tmp_path / "f.parquet", script=EXTRACT)
    assert done.returncode == 2 and "exists already" in done.stderr


def test_images_without_labels_and_a_broken_one(pretrained, image_folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--output", tmp_path / "f.safetensors"]
    (tmp_path / "flat").mkdir()
    for path in list(image_folder.rglob("*.png"))[:5]:
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "flat" / "broken.png").write_bytes(b"no image")
    done = start(*arguments, "--train_dir", tmp_path / "flat", script=EXTRACT)
    assert done.returncode == 0 and "Skipped an unreadable image, broken.png row 0" in done.stdout, done.stderr
    tensors = load_file(tmp_path / "f.safetensors")
    assert sorted(tensors) == ["features", "rows"] and len(tensors["rows"]) == 5
