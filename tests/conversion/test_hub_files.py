"""Models on the Hub, its faults, and the local cache."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file

from mae.conversion.loading import load_checkpoint
from mae.conversion.weights import read_weights
from mae.utils.errors import UserError
from tests.support.checkpoints import assert_same_state, make_model_of_kind, make_vit_mae
from tests.support.data import ROOT
from tests.support.fake_hub import READ_TOKEN, Hub


@pytest.fixture(scope="module")
def on_the_hub(tmp_path_factory):
    """A ViTMAE as on the Hub, in several forms; the folder that it was uploaded from."""
    folder = tmp_path_factory.mktemp("vit_mae")
    make_vit_mae().save_pretrained(folder / "whole")
    make_vit_mae().save_pretrained(folder / "parts", max_shard_size="20KB")
    (folder / "torch").mkdir()
    torch.save(load_file(folder / "whole" / "model.safetensors"), folder / "torch" / "pytorch_model.bin")
    (folder / "torch" / "config.json").write_text((folder / "whole" / "config.json").read_text())
    (folder / "nothing").mkdir()
    (folder / "nothing" / "config.json").write_text("{}")
    api = HfApi()
    for name in ("whole", "parts", "torch", "nothing"):
        api.create_repo(f"me/{name}", private=name == "parts")
        api.upload_folder(folder_path=folder / name, repo_id=f"me/{name}")
    api.create_tag("me/whole", tag="v1")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/whole")
    return folder


@pytest.mark.parametrize("name, revision", [("whole", "v1"), ("parts", None), ("torch", None)])
def test_model_on_the_hub_loads(name, revision, on_the_hub):
    model, report = load_checkpoint(f"me/{name}", revision=revision, allow_pickle=name == "torch")
    assert_same_state(model, load_checkpoint(on_the_hub / "whole")[0])
    assert report.source.startswith(f"me/{name} at ") and report.layout == "vit_mae"
    assert report.revision == HfApi().model_info(f"me/{name}", revision=revision).sha


def test_pickles_of_the_hub_are_not_even_downloaded(on_the_hub, hub: Hub):
    with pytest.raises(UserError, match=r"lacks config.json or weights \(model.safetensors.*--allow_pickle"):
        load_checkpoint("me/torch")
    assert not [request for request in hub.requests if ".bin" in request.path]


def test_a_passing_fault_is_retried(on_the_hub, hub: Hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mae.utils.retries.FIRST_DELAY", 0.01)
    hub.fault("GET", r"/cdn/", status=503, times=2)
    load_checkpoint("me/whole", revision="v1", retry_minutes=1)
    assert "503" in caplog.text


def test_all_files_are_of_one_commit(hub: Hub):
    model = make_model_of_kind("pretraining")
    model.push_to_hub("me/native")
    hub.requests.clear()
    loaded, report = load_checkpoint("me/native", image_size=48)
    files = [request.path.split("/resolve/")[1] for request in hub.requests if "/resolve/" in request.path]
    assert report.layout == "mae" and loaded.config.image_size == 48
    assert_same_state(loaded, type(model).from_pretrained("me/native", image_size=48))
    # All but the first file by the commit that it came from, whatever is pushed in between.
    sha = HfApi().model_info("me/native").sha
    revisions = {path.split("/", 1)[1]: path.split("/")[0] for path in files if not path.startswith("main/config")}
    assert revisions["model.safetensors"] == revisions["preprocessor_config.json"] == sha
    assert {path.split("/")[0] for path in files if not path.endswith("config.json")} == {sha}


def upload(name, folder):
    HfApi().create_repo(f"me/{name}", exist_ok=True)
    HfApi().upload_folder(folder_path=folder, repo_id=f"me/{name}")


def test_a_file_that_the_hub_does_not_give_now_is_not_taken_as_missing(hub: Hub, tmp_path, monkeypatch):
    """Neither other weights nor another mean replace it."""
    make_vit_mae().save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    upload("now-and-then", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client, between five attempts of its own
    for file in ("model.safetensors", "preprocessor_config.json"):
        hub.fault("HEAD", rf"/resolve/.*/{file}$", status=500, times=99)
        with pytest.raises(UserError, match="cannot be loaded from the Hub now"):
            load_checkpoint("me/now-and-then")
        hub.faults.clear()
    assert load_checkpoint("me/now-and-then")[0].config.image_mean == [0.1, 0.2, 0.3]


def test_offline_without_the_processor_is_reported(hub: Hub, tmp_path, monkeypatch):
    """transformers does not download it; without it, mean and std are assumed."""
    make_vit_mae().save_pretrained(tmp_path)
    upload("cached", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for file in ("config.json", "model.safetensors"):
        hf_hub_download("me/cached", file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, report = load_checkpoint("me/cached")
    assert "without its preprocessor_config.json" in str(report)


def test_names_copied_from_documentation_load(on_the_hub):
    for name in ("hf-hub:me/parts", "https://huggingface.co/me/parts", "me/parts/"):
        assert load_checkpoint(name)[1].source.startswith("me/parts at ")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("me/missing", None, "me/missing is neither a file nor a directory here.* not a model on the Hub"),
        ("outputs/typo/model.pth", None, "neither a file nor a directory here, and cannot be a model on the Hub"),
        ("model.pth", None, "cannot be a model on the Hub"),
        ("a b", None, "cannot be a model on the Hub"),
        ("me/whole", "v2", "no revision v2 on the Hub"),
        ("me/nothing", None, "lacks config.json or weights .model.safetensors"),
        ("me\n/pre", None, "cannot be a model on the Hub"),
        ("x" * 300, None, "neither a file nor a directory here"),
    ],
)
def test_name_that_the_hub_does_not_have_is_refused(name, revision, message, on_the_hub):
    with pytest.raises(UserError, match=message) as error:
        read_weights(name, revision)
    assert "\n" not in str(error.value)


def test_private_model_needs_a_token(on_the_hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert read_weights("me/parts")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf auth login"):
        read_weights("me/parts")


def test_files_that_a_model_lacks_are_not_asked_for(on_the_hub, hub: Hub):
    load_checkpoint("me/parts")
    asked = {
        request.path.split("/resolve/")[1].split("/")[1] for request in hub.requests if "/resolve/" in request.path
    }
    assert "config.json" in asked and not asked & {"model.safetensors", "preprocessor_config.json"}


@pytest.fixture
def no_hub(hub: Hub, monkeypatch, tmp_path):
    """A Hub that answers no question, and an empty cache."""
    for method in ("GET", "HEAD", "POST"):
        hub.fault(method, r".*", status=503, times=99)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.requests.clear()
    return hub


@pytest.mark.parametrize("name", ["outputs/run_mea", "run_mea"])
def test_mistyped_path_is_asked_of_the_hub_only_once(name, no_hub: Hub, tmp_path, monkeypatch):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).with_name("run_mae").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name} is neither a file nor a directory here.*run_mae.*503") as error:
        load_checkpoint(name, retry_minutes=10)
    assert "\n" not in str(error.value) and len(no_hub.requests) == 1


def test_model_of_a_silent_hub_is_an_error_at_once_without_retries(no_hub: Hub):
    with pytest.raises(UserError, match="me/unheard is neither a file nor a directory here.*503"):
        load_checkpoint("me/unheard")
    assert len(no_hub.requests) == 1


def test_path_that_exists_is_not_asked_of_the_hub(no_hub: Hub, tmp_path, monkeypatch):
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "archive.zip").write_text("hello")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not a kind of file that holds weights"):
        load_checkpoint("me/archive.zip")
    assert not no_hub.requests


def test_cached_model_loads_if_the_hub_is_silent(hub: Hub, tmp_path, monkeypatch):
    make_vit_mae().save_pretrained(tmp_path)
    upload("cached-before", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    expected, _ = load_checkpoint("me/cached-before")
    hub.fault("GET", r"/api/models/", status=503, times=99)
    model, report = load_checkpoint("me/cached-before")
    assert_same_state(model, expected)
    assert "local cache" in str(report)


@pytest.mark.parametrize("status", [403, 500])
def test_lasting_fault_of_the_hub_is_an_error(status, hub: Hub, tmp_path, monkeypatch):
    make_vit_mae().save_pretrained(tmp_path / "model")
    api = HfApi()
    api.create_repo(f"me/faults{status}")
    api.upload_folder(folder_path=tmp_path / "model", repo_id=f"me/faults{status}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.fault("GET", r"/cdn/", status=status, times=99)
    with pytest.raises(UserError, match=f"cannot be loaded from the Hub now: .*{status}") as error:
        load_checkpoint(f"me/faults{status}")
    assert "\n" not in str(error.value)
    hub.faults.clear()
    load_checkpoint(f"me/faults{status}")


OFFLINE = """
import sys
import time
from mae.conversion.loading import load_checkpoint
from mae.utils.errors import UserError

for name in sys.argv[1:]:
    started = time.monotonic()
    try:
        print(load_checkpoint(name, revision="v1", retry_minutes=10)[1])
    except UserError as error:
        print(error)
    assert time.monotonic() - started < 5
"""


def test_offline_a_cached_model_loads_and_another_is_an_error_at_once(on_the_hub, hub: Hub, tmp_path):
    load_checkpoint("me/whole", revision="v1")
    hub.requests.clear()
    (tmp_path / "outputs" / "run_mae").mkdir(parents=True)
    command = [sys.executable, "-c", OFFLINE, "me/whole", "me/never", "outputs/run_mea"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "me/whole at " in done.stdout and "vit_mae layout" in done.stdout
    *_, never, mistyped = done.stdout.splitlines()
    assert "me/never is neither a file nor a directory here" in never and "HF_HUB_OFFLINE" in never
    assert "did you mean outputs/run_mae?" in mistyped and "HF_HUB_OFFLINE" in mistyped
    assert not hub.requests
