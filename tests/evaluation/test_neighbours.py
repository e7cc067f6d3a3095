"""Nearest neighbours and features: against plain loops, whole scripts as a user starts them."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoImageProcessor

import mae.evaluation.neighbours
from mae.evaluation.metrics import average_precision, confusion_matrix
from mae.evaluation.neighbours import knn_scores
from modeling_mae import MAEModel
from tests.support.data import EMOJI, ROOT
from tests.support.runs import exact, metrics, metrics_of, run, start, train


KNN, EXTRACT = ROOT / "examples" / "run_knn.py", ROOT / "examples" / "extract_features.py"


def plain_knn(features, labels, queries, num_classes, k, temperature):
    """As the papers write it, one query and one neighbour at a time."""
    answers = np.zeros((len(queries), num_classes))
    for number, query in enumerate(queries):
        cosines = [query @ other / np.linalg.norm(query) / np.linalg.norm(other) for other in features]
        for place in np.argsort(cosines)[::-1][:k]:
            answers[number, labels[place]] += np.exp(cosines[place] / temperature)
    return answers


@pytest.mark.parametrize(
    "k, temperature, similarities", [(20, 0.07, 2**24), (5, 1.0, 64), (1, 0.07, 1), (100, 0.5, 200)]
)
def test_neighbours(k, temperature, similarities, monkeypatch):
    """Also where only some of the similarities fit into memory, and with fewer images than neighbours."""
    monkeypatch.setattr(mae.evaluation.neighbours, "_MAX_SIMILARITIES", similarities)
    generator = torch.Generator().manual_seed(0)
    features, queries = torch.randn(60, 8, generator=generator), torch.randn(17, 8, generator=generator) * 5
    labels = torch.randint(0, 4, (60,), generator=generator)
    found = knn_scores(features, labels, queries, 4, k, temperature).double().numpy()
    expected = plain_knn(features.double().numpy(), labels.numpy(), queries.double().numpy(), 4, k, temperature)
    shares = [each / each.sum(axis=1, keepdims=True) for each in (found, expected)]
    np.testing.assert_allclose(*shares, atol=1e-5)
    # A small temperature is the nearest neighbour alone, and no overflow.
    nearest = labels[(F.normalize(queries) @ F.normalize(features).T).argmax(dim=1)]
    assert torch.equal(knn_scores(features, labels, queries, 4, k, 1e-6).argmax(dim=1), nearest)


def test_neighbours_in_half_precision():
    """A run that looks at itself computes in bfloat16 around them: the same answers."""
    generator = torch.Generator().manual_seed(0)
    features, queries = torch.randn(500, 64, generator=generator), torch.randn(100, 64, generator=generator)
    labels = torch.randint(0, 9, (500,), generator=generator)
    expected = knn_scores(features, labels, queries, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn_scores(features, labels, queries, 9), expected)


def test_memory_of_neighbours_is_bounded(monkeypatch):
    """No matrix of similarities is larger than said, whatever the number of images."""
    monkeypatch.setattr(mae.evaluation.neighbours, "_MAX_SIMILARITIES", 2**16)
    sizes, topk = [], torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda self, *args, **kwargs: sizes.append(self.numel()) or topk(self, *args, **kwargs)
    )
    knn_scores(torch.randn(20000, 4), torch.zeros(20000, dtype=torch.long), torch.randn(1500, 4), 2)
    assert len(sizes) > 100 and max(sizes) <= 2**16 + 20 * 1024


def test_metrics():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    matrix = confusion_matrix(labels, predictions, 4)
    for true, guess in np.ndindex(4, 4):
        assert matrix[true, guess] == sum((labels == true) & (predictions == guess))
    # Closed forms: all right, all wrong, one of three at the second place, all equal.
    scores = np.array([[3.0, 3, 3, 1], [2, 2, 2, 1], [1, 1, 1, 1]])
    hits = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]])
    assert average_precision(hits, scores).tolist() == pytest.approx([1, 1 / 3, 1 / 2, 1 / 3])
    assert np.isnan(average_precision(np.zeros((2, 1)), np.ones((2, 1)))).all()


# Scripts


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    from configuration_mae import MAEConfig
    from modeling_mae import MAEForPreTraining
    from tests.training.test_classification import SIZES

    folder = tmp_path_factory.mktemp("pretrained") / "model"
    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig(**SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def rows_of(split):
    (path,) = EMOJI.glob(f"{split}-*.parquet")
    return pq.read_table(path).to_pylist()


def features_of(folder, rows, **arguments):
    """By transformers alone, an image at a time."""
    model, processor = MAEModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    found = []
    for row in rows:
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        with torch.no_grad():
            found.append(model(**processor(picture, return_tensors="pt"), output_hidden_states=True))
    return found


def test_extracted_features(pretrained, tmp_path):
    common = ["--model_name_or_path", pretrained, "--split", "held_out"]
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


def test_images_without_labels(pretrained, image_folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--output", tmp_path / "f.safetensors"]
    (tmp_path / "flat").mkdir()
    for path in list(image_folder.rglob("*.png"))[:5]:
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "flat" / "broken.png").write_bytes(b"no image")
    done = start(*arguments, "--train_dir", tmp_path / "flat", script=EXTRACT)
    assert done.returncode == 0 and "Skipped an unreadable image, broken.png row 0" in done.stdout, done.stderr
    tensors = load_file(tmp_path / "f.safetensors")
    assert sorted(tensors) == ["features", "rows"] and len(tensors["rows"]) == 5


def test_run_knn(pretrained, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--pooling", "cls", "--num_neighbours", 1, 20]
    done = start(*arguments, "--output_file", tmp_path / "knn.json", script=KNN)
    assert done.returncode == 0, done.stderr
    train_rows, test_rows = rows_of("train"), rows_of("test")
    vectors = [
        torch.cat([each.last_hidden_state[:, 0] for each in features_of(pretrained, rows)]).double().numpy()
        for rows in (train_rows, test_rows)
    ]
    labels = np.array([row["label"] for row in train_rows])
    results = json.loads((tmp_path / "knn.json").read_text())["results"]
    for result in results:
        scores = plain_knn(vectors[0], labels, vectors[1], 9, result["num_neighbours"], 0.07)
        accuracy = np.mean(scores.argmax(axis=1) == np.array([row["label"] for row in test_rows]))
        assert result["accuracy"] == pytest.approx(accuracy, abs=1.1 / 190)  # one may be a draw but for rounding
    assert f"num_neighbours 20, accuracy {results[1]['accuracy']:.4g}" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--model_name_or_path"),
        (["--model_name_or_path", "MODEL", "--layer", 9], "--layer 9 must be from 0 to 3"),
        (["--model_name_or_path", "MODEL", "--pooling", "max"], "--pooling max must be one of cls, mean"),
        (["--model_name_or_path", "MODEL", "--num_neighbours", 0], "--num_neighbours 0 must be at least 1"),
        (["--model_name_or_path", "MODEL", "--dataloader_num_workers", -1], "--dataloader_num_workers -1 must not be"),
        (["--model_name_or_path", "MODEL", "--output_file", "no/where.json"], "--output_file no/where.json"),
        (["--model_name_or_path", "MODEL", "--temperature", 0], "--temperature 0.0 must be positive"),
        (["--model_name_or_path", "MODEL", "--train_dir", "nowhere"], "--train_dir nowhere"),
    ],
)
def test_mistakes(arguments, message, pretrained):
    arguments = [pretrained if argument == "MODEL" else argument for argument in arguments]
    done = start(*arguments, script=KNN)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr


def lines_of(output_dir):
    return metrics_of((output_dir / "evaluations.jsonl").read_text().splitlines())


def evaluated(output_dir, *arguments):
    train(output_dir, *arguments)
    return lines_of(output_dir)


def test_neighbours_while_pre_training(data, tmp_path, parquet_folder):
    """Logged and drawn, what run_knn says of the final model, and without a trace in what is trained."""
    flags = ["--dataset_name", EMOJI, *data[2:], "--max_steps", 12, "--eval_steps", 5]
    plain = train(tmp_path / "plain", *flags)
    watched = train(tmp_path / "watched", *flags, "--knn_epochs", 8 / 1716 * 4)  # four steps
    assert exact(plain) == exact(watched)
    lines = lines_of(tmp_path / "watched")
    assert [line["step"] for line in lines if "eval_knn_accuracy" in line] == [4, 8, 12]
    assert [line["step"] for line in lines if "eval_loss" in line] == [5, 10, 12]
    pictures = [Image.open(tmp_path / name / "loss_curve.png").size for name in ("plain", "watched")]
    assert pictures[1][1] > pictures[0][1]
    card = (tmp_path / "watched" / "README.md").read_text()
    assert f"| Accuracy of 20 nearest neighbours, validation images | {lines[-1]['eval_knn_accuracy']:.1%} |" in card
    done = start("--model_name_or_path", tmp_path / "watched", "--pooling", "cls", script=KNN)
    assert f"accuracy {lines[-1]['eval_knn_accuracy']:.4g}," in done.stdout, done.stderr
    # Held-out images of the training ones, which are then no neighbours.
    alone = ["--dataset_name", next(EMOJI.glob("test-*.parquet")), *data[2:], "--max_steps", 4]
    for number, more in enumerate(([], ["--train_val_split", 0.3])):
        lines = evaluated(tmp_path / f"split{number}", *alone, "--knn_epochs", 1, *more)
        assert 0 <= lines[-1]["eval_knn_accuracy"] <= 1
    done = start("--output_dir", tmp_path / "none", *data, "--knn_epochs", 1)
    assert done.returncode == 2 and "has no column of labels" in done.stderr
    assert metrics(tmp_path / "plain")
