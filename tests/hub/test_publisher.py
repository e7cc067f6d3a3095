"""Pushing runs: what whole runs push, faults on the way, loading elsewhere. A loopback Hub, the real clients."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from PIL import Image
from safetensors.torch import load_file

from mae.conversion.loading import load_checkpoint
from mae.hub.cards import is_generated
from mae.hub.publisher import Publisher, is_uploading
from mae.hub.repository import Repository
from mae.utils.errors import RunError
from mae.utils.files import MODEL_FILES
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEForSemanticSegmentation, MAEModel
from tests.hub.test_cards import make_config, row, validate
from tests.hub.test_repository import commits, edit_card, history
from tests.support.data import FIXTURES, ROOT
from tests.support.fake_hub import WRITE_TOKEN, Hub
from tests.support.loopback import HUB, upload
from tests.support.runs import TINY, begin, metrics, run, start


AUTO_MAP = {
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
    "AutoModelForImageClassification": "modeling_mae.MAEForImageClassification",
    "AutoBackbone": "modeling_mae.MAEBackbone",
    "AutoModelForSemanticSegmentation": "modeling_mae.MAEForSemanticSegmentation",
}
PUSHED = [
    "README.md",
    "attention_mae.py",
    "checks_mae.py",
    "config.json",
    "configuration_mae.py",
    "cross_decoder_mae.py",
    "dense_mae.py",
    "environment.json",
    "evaluations.jsonl",
    "layers_mae.py",
    "loss_curve.png",
    "metrics.jsonl",
    "model.safetensors",
    "modeling_mae.py",
    "outputs_mae.py",
    "patches_mae.py",
    "preprocessor_config.json",
    "recipe.yaml",
    "reconstruction.png",
    "train_results.json",
]


# The publisher alone


@pytest.fixture
def output_dir(tmp_path):
    """An output directory with checkpoints of steps 10, 20 and 30; step 20 has averaged weights."""
    model = MAEForPreTraining(make_config())
    for step in (10, 20, 30):
        torch.nn.init.constant_(model.mae.cls_token, step)
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    torch.nn.init.constant_(model.mae.cls_token, 0.5)
    model.save_pretrained(tmp_path / "checkpoint-20" / "ema")
    model.save_pretrained(tmp_path)
    return tmp_path


def make_publisher(name, output_dir, complete=lambda folder, step: None):
    repository = Repository(name)
    repository.create()
    return Publisher(repository, output_dir, complete, minutes=0)


def pushed_token(name):
    """A value that names the checkpoint whose weights were pushed."""
    return load_file(hf_hub_download(name, "model.safetensors"))["mae.cls_token"].flatten()[0].item()


def test_publisher_pushes_a_completed_snapshot_of_a_checkpoint(output_dir, hub: Hub):
    completed = []

    def complete(folder, step):
        completed.append(step)
        (folder / "README.md").write_text(f"Step {step}")

    publisher = make_publisher("me/snapshot", output_dir, complete)
    (output_dir / "metrics.jsonl").write_text("{}\n")
    publisher.push_checkpoint(10)
    publisher.wait()
    assert commits(hub, "me/snapshot") == ["initial commit", "Step 10"] and completed == [10]
    files = {*MODEL_FILES, "README.md", "metrics.jsonl"}
    assert set(HfApi().list_repo_files("me/snapshot")) == files and pushed_token("me/snapshot") == 10
    assert not list((output_dir / "hub_push.unfinished").iterdir()) and not (output_dir / "README.md").exists()


def test_publisher_pushes_averaged_weights_if_there_are_any(output_dir):
    publisher = make_publisher("me/average", output_dir)
    publisher.push_checkpoint(20)
    publisher.wait()
    assert pushed_token("me/average") == 0.5


def test_failed_push_is_reported_and_the_next_save_is_pushed(output_dir, hub: Hub, caplog):
    publisher = make_publisher("me/saves", output_dir)
    hub.fault("POST", "/api/models/me/saves/commit/", status=403)
    publisher.push_checkpoint(10)
    publisher.wait()
    publisher.push_checkpoint(40)  # a checkpoint that does not exist
    assert commits(hub, "me/saves") == ["initial commit"]
    assert [message.split(" was not pushed to me/saves")[0] for message in caplog.messages] == ["Step 10", "Step 40"]
    publisher.push_checkpoint(20)
    publisher.wait()
    assert commits(hub, "me/saves") == ["initial commit", "Step 20"]


def test_error_in_the_card_is_reported_and_pushes_nothing(output_dir, hub: Hub, caplog):
    def complete(folder, step):
        raise ValueError("no card")

    publisher = make_publisher("me/cardless", output_dir, complete)
    publisher.push_checkpoint(10)
    publisher.wait()
    assert "no card" in caplog.text and commits(hub, "me/cardless") == ["initial commit"]
    publisher.finish(30)  # whose card is in the directory already
    assert commits(hub, "me/cardless")[-1] == "Training finished, 30 steps"


def test_only_the_newest_of_queued_saves_is_pushed(output_dir, hub: Hub):
    started, done = threading.Event(), threading.Event()

    def block():
        started.set()
        done.wait(60)

    publisher = make_publisher("me/queue", output_dir)
    hub.fault("POST", "/api/models/me/queue/commit/", before=block)
    assert not is_uploading()
    publisher.push_checkpoint(10)
    assert started.wait(60) and is_uploading()
    for step in (20, 30):
        publisher.push_checkpoint(step)
    done.set()
    publisher.wait()
    assert not is_uploading() and commits(hub, "me/queue") == ["initial commit", "Step 10", "Step 30"]


def test_outdated_save_is_no_longer_retried(output_dir, hub: Hub, monkeypatch):
    """A save is retried without a limit, but not after a newer one is queued."""
    monkeypatch.setattr("mae.utils.retries.FIRST_DELAY", 0.01)
    publisher = make_publisher("me/outdated", output_dir)
    hub.fault("POST", "/api/models/me/outdated/commit/", status=503, times=3)
    hub.fault("POST", "/api/models/me/outdated/commit/", status=503, before=lambda: publisher.push_checkpoint(20))
    publisher.push_checkpoint(10)
    publisher.wait()
    assert commits(hub, "me/outdated") == ["initial commit", "Step 20"]


def test_finish_pushes_the_output_directory_and_raises_if_it_cannot(output_dir, hub: Hub):
    publisher = make_publisher("me/finish", output_dir)
    hub.fault("POST", "/api/models/me/finish/commit/", status=503, times=99)
    with pytest.raises(RunError, match=f"{re.escape(str(output_dir))}.*me/finish.*503"):
        publisher.finish(30)
    hub.faults.clear()
    publisher.finish(30)
    assert commits(hub, "me/finish") == ["initial commit", "Training finished, 30 steps"]
    assert pushed_token("me/finish") == 0.5 and not (output_dir / "hub_push.unfinished").exists()


# A run from the Hub to the Hub


@pytest.fixture(scope="module")
def published(tmp_path_factory, parquet_on_the_hub):
    """
    A run of two processes on a dataset of the Hub, pushed at every save to a Hub that is busy and breaks off: its
    output directory, its ended process, and a folder with its files downloaded from the Hub.
    """
    HUB.requests.clear()
    HUB.fault("POST", r"/api/models/org/published/commit/", status=503, times=1)
    HUB.fault("PUT", r"/lfs-upload/", drop_after=1000, times=1)
    HUB.fault("GET", r"/resolve/.*parquet", status=503, times=1)
    output_dir = tmp_path_factory.mktemp("published") / "run"
    try:
        done = run(
            "--output_dir", output_dir, "--dataset_name", parquet_on_the_hub[0], *TINY,
            "--per_device_train_batch_size", 4, "--norm_pix_loss", "--eval_steps", 10, "--push_to_hub",
            "--hub_model_id", "org/published", "--hub_private_repo", "--hub_strategy", "every_save",
            "--hub_license", "cc-by-4.0", processes=2,
        )  # fmt: skip
        assert [fault.times for fault in HUB.faults] == [0, 0, 0]
    finally:
        HUB.faults.clear()
    assert done.returncode == 0, done.stderr
    copy = Path(snapshot_download("org/published", local_dir=tmp_path_factory.mktemp("copy")))
    return output_dir, done, copy


def test_run_is_pushed_at_saves_and_at_the_end(published, hub: Hub):
    _, done, _ = published
    assert hub.repositories["models", "org/published"].private
    titles = commits(hub, "org/published")
    assert titles[0] == "initial commit" and titles[-1] == "Training finished, 24 steps"
    assert set(titles[1:-1]) <= {"Step 10", "Step 20"}
    assert done.stdout.count("Pushed step 24 to ") == 1
    assert "503" in done.stderr and "retrying in" in done.stderr


def test_pushed_files_are_those_of_the_output_directory(published):
    output_dir, _, copy = published
    assert sorted(path.name for path in copy.iterdir() if path.name != ".cache") == PUSHED
    for name in set(PUSHED) - {"README.md", "recipe.yaml"}:
        assert (copy / name).read_bytes() == (output_dir / name).read_bytes(), name
    config = json.loads((copy / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["norm_pix_loss"]
    assert (copy / "modeling_mae.py").read_bytes() == (ROOT / "modeling_mae.py").read_bytes()
    assert not list(output_dir.glob("*.unfinished"))


def test_pushed_recipe_names_the_data_and_no_repository_to_push_to(published, parquet_on_the_hub):
    recipe = yaml.safe_load((published[2] / "recipe.yaml").read_text())
    assert (recipe["dataset_name"], recipe["dataset_revision"]) == parquet_on_the_hub
    assert not [flag for flag in recipe if "hub" in flag]  # users of the recipe push elsewhere


def test_pushed_card_has_the_facts_of_the_run(published, parquet_on_the_hub):
    _, _, copy = published
    text = (copy / "README.md").read_text()
    card = ModelCard(text)
    validate(card)
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["library_name"] == "transformers"
    assert data["datasets"] == ["me/emoji"] and data["pipeline_tag"] == "image-feature-extraction"
    evaluations = [json.loads(line) for line in (copy / "evaluations.jsonl").read_text().splitlines()]
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(evaluations[-1]["eval_loss"], abs=1e-5)
    assert result["dataset"]["revision"] == parquet_on_the_hub[1]
    assert is_generated(text) and "# org/published" in text and "OWNER" not in text
    assert row(text, "Hardware").startswith("2 x CPU") and "normalised pixels" in text.split("## Limitations")[1]
    assert row(text, "Loss, training, last logged step") == f"{metrics(copy)[-1]['loss']:.4f}"
    assert row(text, "Loss, 12 validation images, fixed masks") == f"{evaluations[-1]['eval_loss']:.4f}"


def test_pushed_card_links_only_to_pushed_files(published):
    _, _, copy = published
    links = re.findall(r"\]\(([\w.]+)\)", (copy / "README.md").read_text())
    assert links and all((copy / name).exists() for name in links)


def test_no_file_holds_a_token_and_no_pushed_file_a_path(published):
    output_dir, done, copy = published
    files = {path: path.read_bytes() for folder in (output_dir, copy) for path in folder.rglob("*") if path.is_file()}
    files |= {Path("stdout"): done.stdout.encode(), Path("stderr"): done.stderr.encode()}
    assert len(files) > 30
    for path, content in files.items():
        assert WRITE_TOKEN.encode() not in content, path
        if copy in path.parents:
            assert str(output_dir.parent.parent).encode() not in content, path


def test_run_on_a_faulty_hub_equals_a_run_on_local_data(published, parquet_folder, tmp_path):
    """Also in one process instead of two."""
    done = start("--output_dir", tmp_path / "run", "--dataset_name", parquet_folder, *TINY, "--norm_pix_loss")
    assert done.returncode == 0, done.stderr
    local, remote = metrics(tmp_path / "run"), metrics(published[0])
    assert [line["samples_digest"] for line in local] == [line["samples_digest"] for line in remote]
    assert [line["loss"] for line in local] == pytest.approx([line["loss"] for line in remote], rel=1e-5)


# Loaded elsewhere


@pytest.fixture(scope="module")
def elsewhere(published, tmp_path_factory, emoji_bytes):
    """Reports and tensors of two fresh processes without the package, the second one offline."""
    _, _, copy = published
    api = HfApi()
    api.create_branch("org/published", branch="dev")
    first = api.upload_file(
        path_or_fileobj=published[0] / "checkpoint-20" / "model.safetensors", path_in_repo="model.safetensors",
        repo_id="org/published", revision="dev",
    ).oid  # fmt: skip
    api.create_tag("org/published", tag="v1", revision=first)
    api.create_repo("org/newer")
    api.upload_folder(repo_id="org/newer", folder_path=copy)
    code = (copy / "modeling_mae.py").read_bytes() + b"\nMAEModel.version = 'newer'\n"
    api.upload_file(path_or_fileobj=code, path_in_repo="modeling_mae.py", repo_id="org/newer")
    classifier = MAEForImageClassification(make_config(pooling="mean", id2label={0: "cat", 1: "dog", 2: "cow"}))
    classifier.push_to_hub("org/classifier")
    segmenter = MAEForSemanticSegmentation(make_config(id2label={0: "soil", 1: "leaf"}))
    segmenter.push_to_hub("org/segmenter")

    work = tmp_path_factory.mktemp("elsewhere")
    Image.open(ROOT / "docs" / "emoji_reconstruction.png").convert("RGB").save(work / "photo.jpg")
    revisions = [None, "dev", "v1", first, api.model_info("org/published").sha]
    wanted = {"name": "org/published", "revisions": revisions, "newer": "org/newer"}
    wanted |= {"classifier": "org/classifier", "segmenter": "org/segmenter"}
    found = []
    for number, extra in enumerate([{}, {"HF_HUB_OFFLINE": "1"}]):
        environment = HUB.environment(work / "home", **extra)
        environment.pop("PYTHONPATH", None)
        HUB.requests.clear()
        done = subprocess.run(
            [sys.executable, FIXTURES / "use_from_the_hub.py", json.dumps(wanted), work / f"{number}.safetensors"],
            env=environment, cwd=work, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert bool(HUB.requests) == (not extra)
        found.append((json.loads(done.stdout.splitlines()[-1]), load_file(work / f"{number}.safetensors")))
    return wanted, found


@pytest.mark.parametrize("number", [0, 1], ids=["online", "offline"])
def test_pushed_model_is_the_same_without_the_package(elsewhere, published, number):
    wanted, found = elsewhere
    report, outputs = found[number]
    assert report["importable"] == []
    assert report["AutoConfig"].startswith("transformers_modules.")
    assert report["AutoImageProcessor"].startswith("ViTImageProcessor")
    assert report["AutoModelForPreTraining"] == ["MAEForPreTraining", [], []]
    assert report["AutoModelForImageClassification"] == ["MAEForImageClassification", ["head.bias", "head.weight"], []]
    assert report["versions"] == ["this", "newer", "this"]
    assert {entry["label"] for entry in report["classes"]} == {"cat", "dog", "cow"}
    with Image.open(ROOT / "docs" / "emoji_reconstruction.png") as picture:
        assert all(label in ("soil", "leaf") and size == list(picture.size) for label, size in report["segments"])
    assert report["segments"] and ModelCard.load("org/segmenter").data.pipeline_tag == "image-segmentation"
    assert report["blocks"] == 5 and outputs["card outputs"].shape == (1, 17, 24)
    assert outputs["card pictures"].shape == (1, 3, 32, 32)

    pixel_values = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        expected = MAEModel.from_pretrained(published[0])(pixel_values).last_hidden_state
    torch.testing.assert_close(outputs["None"], expected)
    if number == 0:
        torch.testing.assert_close(outputs["feature map"].flatten(2).mT, expected[:, 1:])
    torch.testing.assert_close(outputs[wanted["revisions"][-1]], expected)
    first = wanted["revisions"][3]
    for revision in ("dev", "v1", first):
        assert torch.equal(outputs[revision], outputs[first]) and not torch.allclose(outputs[revision], expected)
    torch.testing.assert_close(outputs["pool"], outputs["tokens"][:, 0])
    assert torch.equal(outputs["card outputs"], outputs["tokens"])


def test_private_model_is_hidden_without_a_token(elsewhere):
    assert "org/published" in elsewhere[1][0][0]["without a token"]


def test_checkpoint_is_loaded_at_the_commit_of_a_tag(elsewhere):
    model, found = load_checkpoint("org/published", revision="v1")
    assert found.revision == elsewhere[0]["revisions"][3] and isinstance(model, MAEForPreTraining)


# Runs that push in the background


def test_expired_token_fails_the_push_and_the_same_command_pushes_later(data, tmp_path, hub: Hub, monkeypatch):
    hub.users["hf_short"] = ("me", True)
    login = tmp_path / "token"
    login.write_text("hf_short")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(login))
    hub.fault("POST", "/api/models/me/expired/commit/", before=lambda: hub.users.pop("hf_short"))
    command = ["--output_dir", tmp_path / "expired", *data, "--push_to_hub", "--hub_strategy", "every_save"]
    done = start(*command)
    assert done.returncode == 1 and len(metrics(tmp_path / "expired")) == 24
    assert "was not pushed to me/expired" in done.stderr and "Training continues." in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and f"complete in {tmp_path / 'expired'}" in last and "hf auth login" in last
    assert "hf_short" not in done.stderr + done.stdout
    assert MAEForPreTraining.from_pretrained(tmp_path / "expired")

    login.write_text(WRITE_TOKEN)
    done = start(*command)
    assert done.returncode == 0 and "already finished" in done.stdout and "Pushed step 24" in done.stdout
    assert commits(hub, "me/expired") == ["initial commit", "Training finished, 24 steps"]
    assert "# me/expired" in Path(hf_hub_download("me/expired", "README.md")).read_text()


def test_training_does_not_wait_for_a_push(data, tmp_path, hub: Hub):
    """The Hub answers the first commit only when the last step has been logged."""
    log, waited = tmp_path / "waiting" / "metrics.jsonl", []

    def wait():
        deadline = time.monotonic() + 60
        while log.read_bytes().count(b"\n") < 24 and time.monotonic() < deadline:
            time.sleep(0.01)
        waited.append(log.read_bytes().count(b"\n"))

    hub.fault("POST", "/api/models/me/waiting/commit/", before=wait)
    done = start("--output_dir", tmp_path / "waiting", *data, "--push_to_hub", "--hub_strategy", "every_save")
    assert done.returncode == 0, done.stderr
    found = history(hub, "me/waiting")
    assert waited == [24] and list(found.values())[-1] == "Training finished, 24 steps"
    commit = next(sha for sha, title in found.items() if title == "Step 10")
    on_the_way = Path(snapshot_download("me/waiting", revision=commit))
    assert "step 10 of 24" in (on_the_way / "README.md").read_text()
    checkpoint = load_file(on_the_way / "model.safetensors")
    assert not torch.equal(
        checkpoint["mae.cls_token"], load_file(tmp_path / "waiting" / "model.safetensors")["mae.cls_token"]
    )
    assert [line["step"] for line in metrics(on_the_way)] == list(range(1, 11))
    assert not list((tmp_path / "waiting").glob("*.unfinished"))
    # Named as the directory, and public because nobody asked for anything else.
    assert not hub.repositories["models", "me/waiting"].private


def test_stopped_run_does_not_wait_for_its_upload(tmp_path, hub: Hub, data):
    done, output_dir = threading.Event(), tmp_path / "stopped"
    hub.fault("PUT", "/lfs-upload/", before=lambda: done.wait(120), times=99)
    flags = [*data, "--push_to_hub", "--hub_strategy", "every_save", "--max_steps", 1000]
    process = begin(output_dir, *flags, step=11)
    while not any((output_dir / "hub_push.unfinished").glob("*/README.md")):  # the upload's turn
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert not done.is_set() and process.returncode == 75 and "which is saved" in errors
    assert (output_dir / "hub_push.unfinished").exists() and commits(hub, "me/stopped") == ["initial commit"]
    done.set()


# Before training


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--hub_model_id", "a/b/c"], "--hub_model_id 'a/b/c'"),
        (["--hub_model_id", "other/model"], "other/model"),
        (["--hub_model_id", "me/visible", "--hub_private_repo"], "--hub_private_repo"),
        (["--hub_strategy", "checkpoint"], "--hub_strategy checkpoint"),
        (["--hub_token", "hf_secret"], "hf auth login"),
    ],
)
def test_push_that_must_fail_is_refused_before_training(arguments, message, data, tmp_path):
    HfApi().create_repo("me/visible", exist_ok=True)
    done = start("--output_dir", tmp_path / "run", *data, "--push_to_hub", *arguments)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == line and message in line
    assert "hf_secret" not in line and not (tmp_path / "run" / "metrics.jsonl").exists()


# Runs that read from the Hub


def test_dataset_runs_no_code(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(ran)!r}, 'w')\n")
    upload("script", tmp_path / "script")
    for arguments in ([], ["--no_streaming"]):
        done = start("--output_dir", tmp_path / "run", "--dataset_name", "me/script", *TINY, *arguments)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert not ran.exists() and not (tmp_path / "run").exists()


def test_package_never_trusts_remote_code():
    """Only the cards say it, to users who load a pushed model."""
    files = [*ROOT.glob("*.py"), *(ROOT / "mae").rglob("*"), *(ROOT / "examples").glob("*.py")]
    found = [path for path in files if path.is_file() and b"trust_remote_code=True" in path.read_bytes()]
    assert [path.name for path in found if path.suffix != ".pyc"] == ["usage.md"]


def test_run_starts_from_a_branch_of_the_hub_and_records_its_commit(data, tmp_path):
    MAEForPreTraining(make_config()).push_to_hub("me/start")
    sha = HfApi().model_info("me/start").sha
    edit_card("me/start")
    HfApi().create_branch("me/start", branch="old", revision=sha)
    arguments = ["--dataset_name", data[1], "--model_name_or_path", "me/start", "--model_revision", "old"]
    done = start("--output_dir", tmp_path / "on", *arguments, "--max_steps", 2, "--per_device_train_batch_size", 8)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "on" / "recipe.yaml").read_text())["model_revision"] == sha
    card = (tmp_path / "on" / "README.md").read_text()
    assert ModelCard(card).data.base_model == "me/start" and f"at `{sha}`" in card


def test_model_revision_without_a_model_is_refused(data, tmp_path):
    done = start("--output_dir", tmp_path / "other", *data, "--model_revision", "old")
    assert done.returncode == 2 and "--model_revision" in done.stderr and "--model_name_or_path" in done.stderr
