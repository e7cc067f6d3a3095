"""Reading checkpoints that nobody vouches for: broken and malicious files, directories, the Hub and its faults."""

import argparse
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file, save_file
from test_conversion import assert_same_state, make_model, make_vit_mae
from transformers import BertConfig, BertModel

from mae.conversion.loading import load_checkpoint
from mae.conversion.weights import read_weights
from mae.utils.errors import UserError
from tests.support.data import ROOT
from tests.support.fake_hub import READ_TOKEN, Hub


class Malicious:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def torch_file(path, content, **kwargs):
    torch.save(content, path, **kwargs)
    return path


def state():
    return make_model("encoder").state_dict()


# Files


def malicious(folder):
    return torch_file(folder / "m.pth", {"model": state(), "epoch": Malicious(folder / "executed")})


def malicious_arguments(folder):
    return torch_file(
        folder / "m.pt", {"model": state(), "args": argparse.Namespace(x=Malicious(folder / "executed"))}
    )


def malicious_plain_pickle(folder):
    path = folder / "m.bin"
    path.write_bytes(pickle.dumps(Malicious(folder / "executed")))
    return path


def malicious_old_format(folder):
    content = {"model": state(), "x": Malicious(folder / "executed")}
    return torch_file(folder / "m.pth", content, _use_new_zipfile_serialization=False)


def other_class(folder):
    return torch_file(folder / "m.pth", {"model": state(), "args": pathlib.PurePosixPath("/")})


def truncated_safetensors(folder):
    path = folder / "model.safetensors"
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def header_beyond_the_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes((10**12).to_bytes(8, "little") + b"{}")
    return path


def not_safetensors(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"hello")
    return path


def truncated_zip(folder):
    path = torch_file(folder / "m.pth", {"model": state()})
    path.write_bytes(path.read_bytes()[:-200])
    return path


def zip_with_a_short_tensor(folder):
    """The archive is whole, but the storage of a tensor is not as long as its pickle says."""
    path, short = torch_file(folder / "whole.pth", {"model": state()}), folder / "m.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(short, "w") as archive:
        for entry in whole.infolist():
            data = whole.read(entry)
            archive.writestr(entry.filename, data[:4] if entry.filename.endswith("data/5") else data)
    return short


def some_zip(folder):
    with zipfile.ZipFile(folder / "m.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    return folder / "m.pth"


def empty(folder):
    (folder / "m.pth").touch()
    return folder / "m.pth"


def html(folder):
    """What a failed download leaves."""
    (folder / "m.pth").write_text("<html>404</html>")
    return folder / "m.pth"


def a_list(folder):
    return torch_file(folder / "m.pth", [torch.zeros(3)])


def a_tensor(folder):
    return torch_file(folder / "m.pth", torch.zeros(3))


def no_tensors(folder):
    return torch_file(folder / "m.pth", {"model": {}})


def numbers(folder):
    return torch_file(folder / "m.pth", {"model": {**state(), "epoch": 3}})


def integers(folder):
    return torch_file(folder / "m.pth", {**state(), "cls_token": torch.zeros(1, 1, 24, dtype=torch.int64)})


def with_nan(folder):
    weights = state()
    weights["blocks.1.mlp.fc1.bias"][3] = float("nan")
    weights["norm.weight"][0] = float("inf")
    return torch_file(folder / "m.pth", {"model": weights})


def meta(folder):
    return torch_file(folder / "m.pth", {**state(), "norm.bias": torch.zeros(24, device="meta")})


def sparse(folder):
    return torch_file(folder / "m.pth", {**state(), "norm.bias": torch.ones(24).to_sparse()})


def float8(folder):
    return torch_file(folder / "m.pth", {**state(), "norm.bias": torch.ones(24).to(torch.float8_e4m3fn)})


def names_that_are_numbers(folder):
    return torch_file(folder / "m.pth", {0: torch.zeros(3)})


def torchscript(folder):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "m.pt"))
    return folder / "m.pt"


def damaged_old_format(folder):
    path = torch_file(folder / "m.pth", {"model": state()}, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    data[60:200:7] = b"\xff" * len(data[60:200:7])
    path.write_bytes(data)
    return path


def unknown_suffix(folder):
    (folder / "m.h5").write_bytes(b"hello")
    return folder / "m.h5"


BROKEN = {
    malicious: r"is refused: its pickle asks for (_io|builtins|io)\.open, .* Nothing in it was run",
    malicious_arguments: "is refused: its pickle asks for",
    malicious_plain_pickle: "Nothing in it was run",
    malicious_old_format: "is refused: its pickle asks for",
    other_class: r"is refused: its pickle asks for pathlib.*PurePosixPath",
    truncated_safetensors: "not a whole safetensors file",
    header_beyond_the_file: "not a whole safetensors file",
    not_safetensors: "not a whole safetensors file",
    truncated_zip: "not a (whole )?torch file",
    zip_with_a_short_tensor: "not a (whole )?torch file",
    some_zip: "not a (whole )?torch file",
    empty: "not a (whole )?torch file",
    html: "not a (whole )?torch file",
    a_list: "holds a list, not a dictionary of tensors",
    a_tensor: "holds a Tensor, not a dictionary",
    no_tensors: "holds no tensors",
    numbers: "holds other things than tensors: epoch",
    integers: r"not floating point \(64, 32 or 16 bits\): cls_token \(torch.int64\)",
    with_nan: "holds NaN or infinity: (norm.weight, blocks.1.mlp.fc1.bias|blocks.1.mlp.fc1.bias, norm.weight)",
    meta: "holds tensors without values, or sparse ones: norm.bias",
    sparse: "holds tensors without values, or sparse ones: norm.bias",
    float8: "not floating point .64, 32 or 16 bits.: norm.bias .torch.float8",
    names_that_are_numbers: "whose names are no strings: 0",
    torchscript: "is a TorchScript program, not weights",
    damaged_old_format: "not a (whole )?torch file",
    unknown_suffix: "not a kind of file that holds weights",
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_broken_files(make, tmp_path):
    path = make(tmp_path)
    with pytest.raises(UserError, match=BROKEN[make]) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_the_malicious_file_would_work(tmp_path):
    """Else the tests above could not fail."""
    torch.load(malicious(tmp_path), weights_only=False)
    assert (tmp_path / "executed").exists()


def test_old_and_other_files_load(tmp_path):
    """Torch's format before 1.6, a state alone, and under the name that timm's trainer gives it."""
    model = make_model("encoder")
    for index, content in enumerate([model.state_dict(), {"state_dict": model.state_dict(), "arch": "vit"}]):
        for new_format in (True, False):
            path = tmp_path / f"{index}{new_format}.pt"
            torch_file(path, content, _use_new_zipfile_serialization=new_format)
            assert_same_state(load_checkpoint(path, num_attention_heads=2)[0], model)


# Directories


def test_directories(tmp_path):
    model = make_model("encoder")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    assert_same_state(load_checkpoint(tmp_path)[0], model)
    torch.save(make_model("encoder").half().state_dict(), tmp_path / "pytorch_model.bin")
    assert load_checkpoint(tmp_path)[0].dtype == torch.float32
    named, _ = load_checkpoint(tmp_path / "pytorch_model.bin")  # that one, with the directory's configuration
    assert named.dtype == torch.float16 and named.config.num_attention_heads == 2
    (tmp_path / "pytorch_model.bin").unlink()

    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (tmp_path / "again.safetensors").write_bytes(parts[0].read_bytes())
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "more": "again.safetensors"}}))
    with pytest.raises(UserError, match="repeats tensors of another part"):
        load_checkpoint(tmp_path)
    index.write_text(json.dumps(content))
    parts[0].rename(tmp_path / "away")
    with pytest.raises(UserError, match=f"{parts[0].name} does not exist"):
        load_checkpoint(tmp_path)
    for name in ("../outside.safetensors", "/etc/passwd", "..", 3):
        index.write_text(json.dumps({"weight_map": {**content["weight_map"], "norm.bias": name}}))
        with pytest.raises(UserError, match="which is not a file beside it"):
            load_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "more": parts[1].name}}))
    (tmp_path / "away").rename(parts[0])
    with pytest.raises(UserError, match="names tensors that no part holds: more"):
        load_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        load_checkpoint(tmp_path)
    index.unlink()
    with pytest.raises(UserError, match="has no weights: none of model.safetensors"):
        load_checkpoint(tmp_path)
    for text in ("{", "[]", "\x00", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        with pytest.raises(UserError, match="config.json (cannot be read|must hold a JSON object)"):
            load_checkpoint(tmp_path)


def test_directory_without_a_configuration(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        load_checkpoint(tmp_path)
    save_file(state(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"to read a file by itself, name it: .*weights.safetensors"):
        load_checkpoint(tmp_path)


def test_another_model(tmp_path):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the model_type in its config.json is 'bert'"):
        load_checkpoint(tmp_path)


def test_several_sets_of_weights(tmp_path):
    """timm's trainer keeps an average of the weights too; DistributedDataParallel names them otherwise."""
    model = make_model("encoder")
    average = {name: tensor * 0 for name, tensor in model.state_dict().items()}
    path = torch_file(tmp_path / "checkpoint.pth.tar", {"state_dict": model.state_dict(), "state_dict_ema": average})
    loaded, found = load_checkpoint(path, num_attention_heads=2)
    assert_same_state(loaded, model)
    assert "state_dict_ema, other weights in the file, left out" in str(found)
    # Also in a directory; and what a file says of itself is no note of ours.
    model.config.save_pretrained(tmp_path / "folder")
    torch_file(tmp_path / "folder" / "pytorch_model.bin", {"model": model.state_dict(), "model_ema": average})
    assert "model_ema, other weights" in str(load_checkpoint(tmp_path / "folder")[1])
    save_file(model.state_dict(), tmp_path / "noted.safetensors", metadata={"notes": "hello"})
    assert not load_checkpoint(tmp_path / "noted.safetensors", num_attention_heads=2)[1].changed
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    assert_same_state(load_checkpoint(torch_file(tmp_path / "ddp.pth", wrapped), num_attention_heads=2)[0], model)


# Hub


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
def test_models_on_the_hub(name, revision, on_the_hub):
    model, found = load_checkpoint(f"me/{name}", revision=revision, allow_pickle=name == "torch")
    assert_same_state(model, load_checkpoint(on_the_hub / "whole")[0])
    assert found.source.startswith(f"me/{name} at ") and found.layout == "vit_mae"
    assert found.revision == HfApi().model_info(f"me/{name}", revision=revision).sha


def test_pickles_of_the_hub_are_not_even_downloaded(on_the_hub, hub: Hub):
    with pytest.raises(UserError, match=r"lacks config.json or weights \(model.safetensors.*--allow_pickle"):
        load_checkpoint("me/torch")
    assert not [request for request in hub.requests if ".bin" in request.path]


def test_a_passing_fault_is_waited_out(on_the_hub, hub: Hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mae.utils.retries.FIRST_DELAY", 0.01)
    hub.fault("GET", r"/cdn/", status=503, times=2)
    load_checkpoint("me/whole", revision="v1", retry_minutes=1)
    assert "503" in capsys.readouterr().err


def test_our_models_on_the_hub(hub: Hub):
    model = make_model("pretraining")
    model.push_to_hub("me/ours")
    hub.requests.clear()
    loaded, found = load_checkpoint("me/ours", image_size=48)
    files = [request.path.split("/resolve/")[1] for request in hub.requests if "/resolve/" in request.path]
    assert found.layout == "mae" and loaded.config.image_size == 48
    assert_same_state(loaded, type(model).from_pretrained("me/ours", image_size=48))
    # All but the first file by the commit that it came from, whatever is pushed in between.
    sha = HfApi().model_info("me/ours").sha
    revisions = {path.split("/", 1)[1]: path.split("/")[0] for path in files if not path.startswith("main/config")}
    assert revisions["model.safetensors"] == revisions["preprocessor_config.json"] == sha
    assert {path.split("/")[0] for path in files if not path.endswith("config.json")} == {sha}


def upload(name, folder):
    HfApi().create_repo(f"me/{name}", exist_ok=True)
    HfApi().upload_folder(folder_path=folder, repo_id=f"me/{name}")


def test_a_file_that_the_hub_does_not_give_now_is_no_missing_one(hub: Hub, tmp_path, monkeypatch):
    """Neither other weights nor other means in its place."""
    make_vit_mae().save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    upload("now-and-then", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client, between five attempts of its own
    for file in ("model.safetensors", "preprocessor_config.json"):
        hub.fault("HEAD", rf"/resolve/.*/{file}$", status=500, times=99)
        with pytest.raises(UserError, match="cannot be asked for it"):
            load_checkpoint("me/now-and-then")
        hub.faults.clear()
    assert load_checkpoint("me/now-and-then")[0].config.image_mean == [0.1, 0.2, 0.3]


def test_offline_without_the_processor(hub: Hub, tmp_path, monkeypatch):
    """Cached by transformers, which does not ask for it: told, because the means are then assumed."""
    make_vit_mae().save_pretrained(tmp_path)
    upload("cached", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for file in ("config.json", "model.safetensors"):
        hf_hub_download("me/cached", file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, found = load_checkpoint("me/cached")
    assert "without its preprocessor_config.json, if it has one: offline" in str(found)


def test_names_as_people_copy_them(on_the_hub):
    for name in ("hf-hub:me/parts", "https://huggingface.co/me/parts", "me/parts/"):
        assert load_checkpoint(name)[1].source.startswith("me/parts at ")


def test_what_the_hub_does_not_give(on_the_hub, hub: Hub, monkeypatch, tmp_path):
    for name, revision, message in [
        ("me/missing", None, "me/missing is neither a file nor a directory here, and not a model on the Hub"),
        ("outputs/typo/model.pth", None, "neither a file nor a directory here, and cannot be a model on the Hub"),
        ("model.pth", None, "cannot be a model on the Hub"),
        ("a b", None, "cannot be a model on the Hub"),
        ("me/whole", "v2", "has no revision v2 on the Hub"),
        ("me/nothing", None, "lacks config.json or weights .model.safetensors"),
        ("me\n/pre", None, "cannot be a model on the Hub"),
        ("x" * 300, None, "neither a file nor a directory here"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            read_weights(name, revision)
        assert "\n" not in str(error.value)

    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert read_weights("me/parts")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not a model on the Hub that you may see"):
        read_weights("me/parts")


@pytest.mark.parametrize("status", [403, 500])
def test_faults_of_the_hub(status, hub: Hub, tmp_path, monkeypatch):
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


def test_offline_once_cached(on_the_hub):
    load_checkpoint("me/whole", revision="v1")
    code = """
from mae.utils.errors import UserError
from mae.conversion.loading import load_checkpoint

print(load_checkpoint("me/whole", revision="v1")[1])
try:
    load_checkpoint("me/never")
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert "me/whole at " in done.stdout and "vit_mae layout" in done.stdout, done.stderr
    assert "me/never is neither a file nor a directory here, and the Hub cannot be asked for it" in done.stdout


def test_the_users_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_model("encoder").save_pretrained(tmp_path / "model")
    assert load_checkpoint(os.path.join("~", "model"))[1].layout == "mae"
