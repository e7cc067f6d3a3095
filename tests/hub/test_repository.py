"""Repositories on the Hub: checks before a push, what a push uploads and keeps, and models pushed by themselves."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from safetensors.torch import load_file

import mae
from mae.hub.cards import is_generated, seal
from mae.hub.repository import Repository, push_to_hub, without_paths
from mae.utils import retries
from mae.utils.errors import UserError
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEModel
from tests.hub.test_cards import GENERATED_BY_0_1_0, make_config, validate
from tests.support.fake_hub import READ_TOKEN, Hub


MODEL = [
    "attention_mae.py",
    "checks_mae.py",
    "config.json",
    "configuration_mae.py",
    "cross_decoder_mae.py",
    "dense_mae.py",
    "layers_mae.py",
    "model.safetensors",
    "modeling_mae.py",
    "outputs_mae.py",
    "patches_mae.py",
    "preprocessor_config.json",
]


def history(hub, name, branch="main"):
    """Commit -> title, oldest first."""
    repository = hub.repositories["models", name]
    sha, found = repository.branches[branch], {}
    while sha is not None:
        found = {sha: repository.commits[sha].title} | found
        sha = repository.commits[sha].parent
    return found


def commits(hub, name, branch="main"):
    return list(history(hub, name, branch).values())


def edit_card(name, text="# My own words\n"):
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=name)


def pushed_card(name, revision=None):
    return Path(hf_hub_download(name, "README.md", revision=revision)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    MAEModel(make_config()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved_model, tmp_path):
    """The folder of a model with a generated card, to be changed."""
    for path in saved_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text(seal("---\nlicense: mit\n---\n\n# OWNER/NAME\n"))
    return tmp_path


# Before a push


def test_constructor_sends_nothing_and_create_makes_the_repository(hub: Hub):
    repository = Repository("created", private=True, revision="dev")
    assert not hub.requests and ("models", "me/created") not in hub.repositories
    repository.create()
    assert repository.name == "me/created" and repository.url == f"{hub.url}/me/created/tree/dev"
    assert hub.repositories["models", "me/created"].private
    assert set(hub.repositories["models", "me/created"].branches) == {"main", "dev"}


def test_create_accepts_a_repository_and_branch_that_exist(hub: Hub):
    for _ in range(2):
        Repository("me/existing", revision="dev").create()
    assert commits(hub, "me/existing", "dev") == ["initial commit"]


def test_default_is_public(hub: Hub):
    Repository("me/default").create()
    assert not hub.repositories["models", "me/default"].private


@pytest.mark.parametrize("name", ["../../escape", "me/..", "/tmp/x", "a/b/c", "a b", "me/x.git", ".", ""])
def test_invalid_name_is_refused(name, hub: Hub):
    with pytest.raises(UserError, match="--hub_model_id") as error:
        Repository(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value) and not hub.requests


def test_offline_mode_is_refused(hub: Hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        Repository("me/offline")
    assert not hub.requests


def test_missing_token_is_refused(hub: Hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="hf auth login"):
        Repository("me/tokenless")
    assert not hub.requests


@pytest.mark.parametrize("token, status", [(READ_TOKEN, "403"), ("hf_wrong", "401")])
def test_token_without_the_right_to_write_is_refused_in_one_line(token, status, hub: Hub, monkeypatch):
    HfApi().create_repo("me/public", exist_ok=True)
    monkeypatch.setenv("HF_TOKEN", token)
    for name in ("me/public", "me/forbidden"):
        with pytest.raises(UserError, match=f"--push_to_hub {name}.*{status}.*token|HF_TOKEN") as error:
            Repository(name).create()
        assert token not in str(error.value) and "\n" not in str(error.value)
    assert ("models", "me/forbidden") not in hub.repositories


def test_repository_of_somebody_else_is_refused():
    with pytest.raises(UserError, match="--push_to_hub other/model.*choose another repository"):
        Repository("other/model").create()


def test_public_repository_is_refused_if_it_must_be_private(hub: Hub):
    HfApi().create_repo("me/open", exist_ok=True)
    with pytest.raises(UserError, match="me/open.*public.*--hub_private_repo"):
        Repository("me/open", private=True, retry_minutes=10).create()
    assert not hub.repositories["models", "me/open"].private


def test_busy_hub_is_retried(hub: Hub, monkeypatch, caplog):
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(retries.Retry, "last_reported", 0.0)
    hub.fault("POST", "/api/repos/create", status=503, times=2)
    repository = Repository("busy", retry_minutes=1)
    repository.create()
    assert repository.name == "me/busy" and "retrying in" in caplog.text
    hub.fault("POST", "/api/repos/create", status=503)
    with pytest.raises(UserError, match="503"):
        Repository("busy").create()


# A push


def test_folder_without_a_model_is_refused(tmp_path, hub: Hub):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path}.*model.safetensors"):
        push_to_hub(tmp_path, "me/nothing")
    assert not hub.requests


def test_push_uploads_model_and_card_only(folder):
    (folder / "private.txt").write_text("not for others")
    (folder / "predictions.csv").write_text("names of files")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.bin").write_bytes(b"state")
    commit = mae.push_to_hub(str(folder), "directory")
    assert HfApi().model_info("me/directory").sha == commit
    assert sorted(HfApi().list_repo_files("me/directory")) == ["README.md", *MODEL]
    expected = MAEModel.from_pretrained(folder).cls_token
    assert torch.equal(MAEModel.from_pretrained("me/directory", revision=commit).cls_token, expected)
    card = pushed_card("me/directory")
    assert "# me/directory" in card and is_generated(card)


def test_push_of_an_unchanged_folder_makes_no_commit(folder, hub: Hub):
    push_to_hub(folder, "me/unchanged")
    push_to_hub(folder, "me/unchanged")
    assert commits(hub, "me/unchanged") == ["initial commit", "Upload model"]


def test_push_replaces_a_generated_card_also_of_an_earlier_version(folder):
    push_to_hub(folder, "me/generated")
    edit_card("me/generated", GENERATED_BY_0_1_0)
    push_to_hub(folder, "me/generated")
    assert "umlaut" not in pushed_card("me/generated")


def test_push_keeps_a_card_that_was_edited_on_the_hub(folder, hub: Hub, caplog):
    caplog.set_level("INFO", "mae")
    push_to_hub(folder, "me/edited")
    edit_card("me/edited")
    (folder / "metrics.jsonl").write_text("{}\n")
    push_to_hub(folder, "me/edited")
    assert commits(hub, "me/edited")[-1] == "Upload model"
    assert "metrics.jsonl" in HfApi().list_repo_files("me/edited")
    assert pushed_card("me/edited") == "# My own words\n" and "README.md" in caplog.text


def test_push_takes_a_card_that_was_edited_here(folder):
    (folder / "README.md").write_text("Mine is OWNER/NAME.\n")
    push_to_hub(folder, "me/own", private=True, revision="dev")
    assert pushed_card("me/own", "dev") == "Mine is me/own.\n"
    assert HfApi().list_repo_files("me/own") == [] and HfApi().model_info("me/own").private


def test_push_keeps_a_card_that_is_edited_meanwhile(folder, hub: Hub):
    edits = []

    def edit():
        edits.append("edited")
        edit_card("me/between")

    HfApi().create_repo("me/between")
    hub.fault("POST", "/api/models/me/between/commit/", before=edit)
    push_to_hub(folder, "me/between")
    assert edits and commits(hub, "me/between")[1:] == ["Upload README.md with huggingface_hub", "Upload model"]
    assert pushed_card("me/between") == "# My own words\n"


def test_push_does_not_take_an_outage_for_a_missing_card(folder, hub: Hub, monkeypatch):
    # The client's own attempts follow one another at once.
    without_sleep = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", without_sleep)
    push_to_hub(folder, "me/outage-of-cards")
    edit_card("me/outage-of-cards")
    hub.fault("HEAD", "/me/outage-of-cards/resolve/.*README.md", status=503, times=99)
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="push to me/outage-of-cards"):
        push_to_hub(folder, "me/outage-of-cards", retry_minutes=0)
    hub.faults.clear()
    assert pushed_card("me/outage-of-cards") == "# My own words\n"


def test_recipe_loses_its_paths_and_keeps_names_of_the_hub(tmp_path, monkeypatch):
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


# Models that are pushed by themselves


@pytest.mark.parametrize(
    "cls, task",
    [(MAEForPreTraining, "image-feature-extraction"), (MAEForImageClassification, "image-classification")],
)
def test_pushed_model_is_complete_and_its_card_names_the_task(cls, task):
    name = f"me/alone-{task}"
    cls(make_config()).push_to_hub(name, tags=["leaves"])
    assert set(HfApi().list_repo_files(name)) == {"README.md", *MODEL}
    card = ModelCard.load(name)
    validate(card)
    assert card.data.pipeline_tag == task and card.data.library_name == "transformers"
    assert card.data.tags == ["leaves", "mae", "masked-autoencoder"]


def test_model_pushed_again_keeps_card_and_processor_of_the_hub(tmp_path, hub: Hub):
    name, model = "me/twice", MAEForImageClassification(make_config(num_labels=3))
    model.push_to_hub(name)
    edit_card(name, "---\nlicense: mit\n---\n# My own words\n")
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="preprocessor_config.json", repo_id=name)
    torch.nn.init.ones_(model.head.bias)
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=name, commit_message="Better")
    assert commits(hub, name)[-1] == "Better"
    assert "# My own words" in ModelCard.load(name).content
    assert Path(hf_hub_download(name, "preprocessor_config.json")).read_text() == "{}"
    assert (load_file(hf_hub_download(name, "model.safetensors"))["head.bias"] == 1).all()
    # A new branch gets a processor.
    model.push_to_hub(name, revision="fresh")
    assert json.loads(Path(hf_hub_download(name, "preprocessor_config.json", revision="fresh")).read_text())


def test_model_saved_with_push_to_hub_is_named_as_its_folder(tmp_path):
    MAEModel(make_config()).save_pretrained(tmp_path / "named", push_to_hub=True)
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == MODEL
    assert set(HfApi().list_repo_files("me/named")) == {"README.md", *MODEL}
