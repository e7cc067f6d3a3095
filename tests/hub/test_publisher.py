"""Pushing to the Hub and loading from it: the loopback Hub, real clients, whole runs, faults on the way."""

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
from test_cards import validate
from test_loading import AUTO_MAP, FILES, FIXTURES, make_model

from mae.conversion.loading import load_checkpoint
from mae.hub.cards import is_generated
from mae.hub.publisher import Publisher
from mae.hub.repository import Repository, push_to_hub, without_paths
from mae.training.run_directory import RunDirectory
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining, MAEModel
from tests.support.data import ROOT
from tests.support.fake_hub import READ_TOKEN, WRITE_TOKEN, Hub
from tests.support.loopback import upload
from tests.support.runs import TINY, begin, metrics, run, start


PUSHED = [
    "README.md",
    "config.json",
    "configuration_mae.py",
    "environment.json",
    "evaluations.jsonl",
    "loss_curve.png",
    "metrics.jsonl",
    "model.safetensors",
    "modeling_mae.py",
    "preprocessor_config.json",
    "recipe.yaml",
    "reconstruction.png",
    "train_results.json",
]


def history(hub, name):
    """Commit -> title, oldest first."""
    repository = hub.repositories["models", name]
    sha, found = repository.branches["main"], {}
    while sha is not None:
        found = {sha: repository.commits[sha].title} | found
        sha = repository.commits[sha].parent
    return found


def commits(hub, name):
    return list(history(hub, name).values())


def edit_card(name, text="# My own words\n"):
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=name)


# From the Hub to the Hub


@pytest.fixture(scope="module")
def published(tmp_path_factory, parquet_on_the_hub):
    """
    A run of two processes on a data set of the Hub, pushed at every save through a Hub that is busy and breaks off:
    output directory, what was said, and where its files on the Hub were downloaded to.
    """
    from tests.support.loopback import HUB

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


def test_what_lands_there(published, parquet_on_the_hub, hub: Hub):
    output_dir, done, copy = published
    assert sorted(path.name for path in copy.iterdir() if path.name != ".cache") == PUSHED
    assert hub.repositories["models", "org/published"].private
    titles = commits(hub, "org/published")
    assert titles[0] == "initial commit" and titles[-1] == "Training finished, 24 steps"
    assert set(titles[1:-1]) <= {"Step 10", "Step 20"}
    assert done.stdout.count("Pushed step 24 to ") == 1
    assert "503" in done.stderr and "trying again" in done.stderr

    for name in set(PUSHED) - {"README.md", "recipe.yaml"}:
        assert (copy / name).read_bytes() == (output_dir / name).read_bytes(), name
    config = json.loads((copy / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["norm_pix_loss"]
    assert (copy / "modeling_mae.py").read_bytes() == (ROOT / "modeling_mae.py").read_bytes()
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    assert (recipe["dataset_name"], recipe["dataset_revision"]) == parquet_on_the_hub
    # Not to whom it is pushed: who takes the recipe has a Hub of their own.
    assert not [flag for flag in recipe if "hub" in flag]
    assert not list(output_dir.glob("*.unfinished"))


def test_the_card(published, parquet_on_the_hub):
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
    assert "| Hardware | 2 x CPU" in text and "It was trained on normalised pixels" in text
    assert f"{metrics(copy)[-1]['loss']:.4f}" in text and "12 held-out images" in text
    for name in re.findall(r"\]\(([\w.]+)\)", text):
        assert (copy / name).exists(), name


def test_neither_tokens_nor_paths(published):
    output_dir, done, copy = published
    files = {path: path.read_bytes() for folder in (output_dir, copy) for path in folder.rglob("*") if path.is_file()}
    files |= {Path("stdout"): done.stdout.encode(), Path("stderr"): done.stderr.encode()}
    assert len(files) > 30
    for path, content in files.items():
        assert WRITE_TOKEN.encode() not in content, path
        if copy in path.parents:
            assert str(output_dir.parent.parent).encode() not in content, path


def test_the_data_is_not_lost_to_faults(published, parquet_folder, tmp_path):
    """The same run from this machine's copy, in one process."""
    done = start("--output_dir", tmp_path / "run", "--dataset_name", parquet_folder, *TINY, "--norm_pix_loss")
    assert done.returncode == 0, done.stderr
    ours, theirs = metrics(tmp_path / "run"), metrics(published[0])
    assert [line["samples_digest"] for line in ours] == [line["samples_digest"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)


# Elsewhere


@pytest.fixture(scope="module")
def elsewhere(published, tmp_path_factory, emoji_bytes):
    """What two fresh processes say that do not have the package, the second one offline: reports and tensors."""
    from tests.support.loopback import HUB

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
    classifier = make_model("classification_mean")
    classifier.config.id2label = {0: "cat", 1: "dog", 2: "cow"}
    classifier.push_to_hub("org/classifier")

    work = tmp_path_factory.mktemp("elsewhere")
    Image.open(FIXTURES.parent.parent / "docs" / "emoji_reconstruction.png").convert("RGB").save(work / "photo.jpg")
    revisions = [None, "dev", "v1", first, api.model_info("org/published").sha]
    wanted = {"name": "org/published", "revisions": revisions, "newer": "org/newer", "classifier": "org/classifier"}
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
def test_others_load_it(elsewhere, published, number, tmp_path):
    wanted, found = elsewhere
    report, outputs = found[number]
    assert report["importable"] == []
    assert report["AutoConfig"].startswith("transformers_modules.")
    assert report["AutoImageProcessor"].startswith("ViTImageProcessor")
    assert report["AutoModelForPreTraining"] == ["MAEForPreTraining", [], []]
    assert report["AutoModelForImageClassification"] == ["MAEForImageClassification", ["head.bias", "head.weight"], []]
    assert report["versions"] == ["this", "newer", "this"]
    assert {entry["label"] for entry in report["classes"]} == {"cat", "dog", "cow"}
    assert report["blocks"] == 4 and outputs["card outputs"].shape == (1, 17, 24)
    assert outputs["card pictures"].shape == (1, 3, 32, 32)

    pixel_values = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        expected = MAEModel.from_pretrained(published[0])(pixel_values).last_hidden_state
    torch.testing.assert_close(outputs["None"], expected)
    torch.testing.assert_close(outputs[wanted["revisions"][-1]], expected)
    first = wanted["revisions"][3]
    for revision in ("dev", "v1", first):
        assert torch.equal(outputs[revision], outputs[first]) and not torch.allclose(outputs[revision], expected)
    torch.testing.assert_close(outputs["pool"], outputs["tokens"][:, 0])
    assert torch.equal(outputs["card outputs"], outputs["tokens"])


def test_private_is_private(elsewhere):
    assert "org/published" in elsewhere[1][0][0]["without a token"]
    model, found = load_checkpoint("org/published", revision="v1")
    assert found.revision == elsewhere[0]["revisions"][3] and isinstance(model, MAEForPreTraining)


# A run that is pushed again


def test_a_card_that_was_edited_stays(published, hub: Hub):
    output_dir, _, _ = published
    before = commits(hub, "org/published")
    push_to_hub(output_dir, "org/published")
    assert commits(hub, "org/published") == before  # nothing has changed
    edit_card("org/published")
    (output_dir / "metrics.jsonl").open("a").write("\n")
    push_to_hub(output_dir, "org/published")
    assert commits(hub, "org/published")[-1] == "Upload model"
    card = hf_hub_download("org/published", "README.md")
    assert Path(card).read_text() == "# My own words\n"
    # One that was edited here is what is pushed elsewhere.
    (output_dir / "README.md").write_text("Mine is OWNER/NAME.\n")
    push_to_hub(output_dir, "me/again", private=True, revision="dev")
    assert Path(hf_hub_download("me/again", "README.md", revision="dev")).read_text() == "Mine is me/again.\n"
    assert HfApi().list_repo_files("me/again") == [] and HfApi().model_info("me/again").private


def test_a_commit_in_between(published, hub: Hub):
    """Of somebody who edits the card while it is pushed."""
    edits = []

    def edit():
        edits.append("edited")
        edit_card("me/between")

    HfApi().create_repo("me/between")
    hub.fault("POST", "/api/models/me/between/commit/", before=edit)
    push_to_hub(published[0], "me/between")
    assert edits and commits(hub, "me/between")[1:] == ["Upload README.md with huggingface_hub", "Upload model"]
    assert Path(hf_hub_download("me/between", "README.md")).read_text() == "# My own words\n"


def test_an_expired_token_ends_no_run(data, tmp_path, hub: Hub, monkeypatch):
    """All is there, and the same command pushes it once there is another token."""
    hub.users["hf_short"] = ("me", True)
    login = tmp_path / "token"
    login.write_text("hf_short")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(login))
    hub.fault("POST", "/api/models/me/expired/commit/", before=lambda: hub.users.pop("hf_short"))
    command = ["--output_dir", tmp_path / "expired", *data, "--push_to_hub", "--hub_strategy", "every_save"]
    done = start(*command)
    assert done.returncode == 1 and len(metrics(tmp_path / "expired")) == 24
    assert "was not pushed to me/expired" in done.stderr and "The run goes on." in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"error: The model is complete in {tmp_path / 'expired'}, but could"
    )
    assert "hf auth login" in done.stderr.splitlines()[-1] and "hf_short" not in done.stderr + done.stdout
    assert MAEForPreTraining.from_pretrained(tmp_path / "expired")

    login.write_text(WRITE_TOKEN)
    done = start(*command)
    assert done.returncode == 0 and "already finished" in done.stdout and "Pushed step 24" in done.stdout
    assert commits(hub, "me/expired") == ["initial commit", "Training finished, 24 steps"]
    assert "# me/expired" in Path(hf_hub_download("me/expired", "README.md")).read_text()


def test_training_does_not_wait_for_a_push(data, tmp_path, hub: Hub):
    """The first commit is answered only when the last step has been logged."""
    log, waited = tmp_path / "waiting" / "metrics.jsonl", []

    def wait():
        deadline = time.monotonic() + 60
        while log.read_bytes().count(b"\n") < 24 and time.monotonic() < deadline:
            time.sleep(0.01)
        waited.append(log.read_bytes().count(b"\n"))

    hub.fault("POST", "/api/models/me/waiting/commit/", before=wait)
    leftover = tmp_path / "waiting" / "hub_push.unfinished" / "step-5"
    done = start("--output_dir", tmp_path / "waiting", *data, "--push_to_hub", "--hub_strategy", "every_save")
    assert done.returncode == 0, done.stderr
    found = history(hub, "me/waiting")
    assert waited == [24] and list(found.values())[-1] == "Training finished, 24 steps"
    commit = next(sha for sha, title in found.items() if title == "Step 10")
    on_the_way = Path(snapshot_download("me/waiting", revision=commit))
    assert "this is step 10 of 24" in (on_the_way / "README.md").read_text()
    checkpoint = load_file(on_the_way / "model.safetensors")
    assert not torch.equal(
        checkpoint["mae.cls_token"], load_file(tmp_path / "waiting" / "model.safetensors")["mae.cls_token"]
    )
    assert [line["step"] for line in metrics(on_the_way)] == list(range(1, 11))
    assert not leftover.exists()
    # Private by nobody's wish, and named as the directory.
    assert not hub.repositories["models", "me/waiting"].private


def test_every_save_is_pushed_when_there_is_time(published, hub: Hub, tmp_path):
    """A save whose push fails for good is told, and the next one is pushed."""
    output_dir, _, copy = published
    run = RunDirectory(tmp_path / "run", {})
    for step in (10, 20):
        model = MAEForPreTraining.from_pretrained(output_dir)
        model.save_pretrained(run.path / f"checkpoint-{step}")
        torch.nn.init.ones_(model.mae.cls_token)
        if step == 20:
            model.save_pretrained(run.path / f"checkpoint-{step}" / "ema")
    repository, completed = Repository("me/saves"), []
    publisher = Publisher(repository, run, lambda folder, step: completed.append(step), minutes=0)

    def push(step):
        publisher.push_checkpoint(step)
        while publisher._waiting is not None or publisher._under_way:
            time.sleep(0.01)

    hub.fault("POST", "/api/models/me/saves/commit/", status=403)
    push(10)
    assert commits(hub, "me/saves") == ["initial commit"]
    push(30)  # a checkpoint that is not there
    push(20)
    assert commits(hub, "me/saves") == ["initial commit", "Step 20"] and completed == [10, 20]
    (weights,) = (load_file(hf_hub_download("me/saves", "model.safetensors")),)
    assert (weights["mae.cls_token"] == 1).all()  # the average
    assert not list((run.path / "hub_push.unfinished").iterdir())


def test_a_run_that_is_stopped_waits_for_no_upload(tmp_path, hub: Hub, data):
    """It is pushed by the run that goes on from it, which tidies up."""
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
    hub.faults.clear()
    done.set()
    identity = json.loads((output_dir / "run.json").read_text())
    del identity["data_name"]
    RunDirectory(output_dir, identity)  # as the next start begins
    assert not (output_dir / "hub_push.unfinished").exists()


# Before training


def test_no_rights(data, tmp_path, hub: Hub, monkeypatch):
    HfApi().create_repo("me/public", exist_ok=True)

    def refuse(*arguments):
        done = start("--output_dir", tmp_path / "run", *data, "--push_to_hub", *arguments)
        assert done.returncode == 2 and not (tmp_path / "run").exists()
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.stderr.splitlines()[-1] == line
        return line

    assert "is public, but --hub_private_repo" in refuse("--hub_model_id", "me/public", "--hub_private_repo")
    for name in ("../../escape", "me/..", "/tmp/x", "a/b/c", "a b", "me/x.git", "."):
        assert "cannot be the name of a model" in refuse("--hub_model_id", name)
    assert "the token may not write there" in refuse("--hub_model_id", "other/model")
    assert "wanted is end or every_save" in refuse("--hub_strategy", "checkpoint")
    line = refuse("--hub_token", "hf_secret")
    assert "hf auth login" in line and "hf_secret" not in line
    for token, message in ((READ_TOKEN, "the token may not write there"), ("hf_wrong", "the token is not valid")):
        monkeypatch.setenv("HF_TOKEN", token)
        line = refuse("--hub_model_id", "me/public")
        assert message in line and token not in line
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token that may write: log in with `hf auth login`" in refuse()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refuse()
    assert ("models", "me/run") not in hub.repositories


def test_a_busy_hub_is_waited_for(hub: Hub, monkeypatch, capsys):
    monkeypatch.setattr("mae.utils.retries.FIRST_DELAY", 0.01)
    hub.fault("POST", "/api/repos/create", status=503, times=2)
    assert Repository("busy", retry_minutes=1).name == "me/busy"
    hub.fault("POST", "/api/repos/create", status=503)
    with pytest.raises(UserError, match="503"):
        Repository("busy")


# From Python


def test_push_to_hub_of_a_model(tmp_path, hub: Hub):
    for kind, task in (("pretraining", "image-feature-extraction"), ("classification_cls", "image-classification")):
        name = f"me/model-{kind.replace('_', '-')}"
        model = make_model(kind)
        model.push_to_hub(name, tags=["leaves"])
        assert set(HfApi().list_repo_files(name)) == {"README.md", *FILES}
        card = ModelCard.load(name)
        validate(card)
        assert card.data.pipeline_tag == task and card.data.library_name == "transformers"
        assert card.data.tags == ["leaves", "mae", "masked-autoencoder"]

    # What somebody has made of it on the Hub stays.
    edit_card(name, "---\nlicense: mit\n---\n# My own words\n")
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="preprocessor_config.json", repo_id=name)
    torch.nn.init.zeros_(model.head.bias)
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=name, commit_message="Better")
    assert commits(hub, name)[-1] == "Better"
    assert "# My own words" in ModelCard.load(name).content
    assert Path(hf_hub_download(name, "preprocessor_config.json")).read_text() == "{}"
    assert (load_file(hf_hub_download(name, "model.safetensors"))["head.bias"] == 0).all()
    # By the directory's name, as transformers does it.
    model.save_pretrained(tmp_path / "named", push_to_hub=True)
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == FILES
    assert set(HfApi().list_repo_files("me/named")) == {"README.md", *FILES}
    # A branch that is new has the processor.
    model.push_to_hub(name, revision="fresh")
    assert json.loads(Path(hf_hub_download(name, "preprocessor_config.json", revision="fresh")).read_text())


def test_push_to_hub_of_a_directory(tmp_path):
    with pytest.raises(UserError, match="is not the directory of a model: it lacks config.json"):
        push_to_hub(tmp_path, "me/nothing")
    model = make_model("encoder")
    model.save_pretrained(tmp_path)
    (tmp_path / "private.txt").write_text("not for others")
    (tmp_path / "checkpoint-1").mkdir()
    commit = push_to_hub(str(tmp_path), "directory")
    assert HfApi().model_info("me/directory").sha == commit
    assert "private.txt" not in HfApi().list_repo_files("me/directory")
    assert torch.equal(MAEModel.from_pretrained("me/directory", revision=commit).cls_token, model.cls_token)


def test_recipes_lose_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clinic" / "jane").mkdir(parents=True)
    recipe = {
        "train_dir": "clinic/jane", "validation_dir": "/data/clinic/validation", "dataset_name": "me/emoji",
        "model_name_or_path": str(tmp_path / "clinic"), "seed": 1,
    }  # fmt: skip
    assert yaml.safe_load(without_paths(yaml.safe_dump(recipe))) == {
        "train_dir": "jane", "validation_dir": "validation", "dataset_name": "me/emoji",
        "model_name_or_path": "clinic", "seed": 1,
    }  # fmt: skip


# What is read from the Hub


def test_a_data_set_runs_no_code(tmp_path, hub: Hub):
    ran = tmp_path / "ran"
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(ran)!r}, 'w')\n")
    upload("script", tmp_path / "script")
    for arguments in ([], ["--no_streaming"]):
        done = start("--output_dir", tmp_path / "run", "--dataset_name", "me/script", *TINY, *arguments)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert not ran.exists() and not (tmp_path / "run").exists()
    # Only what a card tells others to write.
    ours = [path for path in [*ROOT.glob("*.py"), *ROOT.glob("mae/*.py"), *ROOT.glob("examples/*.py")]]
    assert [path.name for path in ours if "trust_remote_code=True" in path.read_text()] == ["cards.py"]


def test_going_on_from_a_model_of_the_hub(data, tmp_path, hub: Hub):
    """At the commit that its branch names at the start; which is in the recipe and on the card."""
    make_model("pretraining").push_to_hub("me/start")
    sha = HfApi().model_info("me/start").sha
    edit_card("me/start")
    HfApi().create_branch("me/start", branch="old", revision=sha)
    arguments = ["--dataset_name", data[1], "--model_name_or_path", "me/start", "--model_revision", "old"]
    done = start("--output_dir", tmp_path / "on", *arguments, "--max_steps", 2, "--per_device_train_batch_size", 8)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "on" / "recipe.yaml").read_text())["model_revision"] == sha
    card = (tmp_path / "on" / "README.md").read_text()
    assert ModelCard(card).data.base_model == "me/start" and f"at `{sha}`" in card
    done = start("--output_dir", tmp_path / "other", *data, "--model_revision", "old")
    assert done.returncode == 2 and "--model_revision goes with --model_name_or_path" in done.stderr
