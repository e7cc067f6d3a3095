"""Files that nobody vouches for: broken, write_malicious, old."""

import argparse
import datetime
import pathlib
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mae.conversion.loading import load_checkpoint
from mae.utils.errors import UserError
from tests.support.checkpoints import Malicious, assert_same_state, make_model_of_kind, save_torch, write_malicious


def state():
    return make_model_of_kind("encoder").state_dict()


def malicious_arguments(folder):
    return save_torch(
        folder / "m.pt", {"model": state(), "args": argparse.Namespace(x=Malicious(folder / "executed"))}
    )


def malicious_plain_pickle(folder):
    path = folder / "m.bin"
    path.write_bytes(pickle.dumps(Malicious(folder / "executed")))
    return path


def malicious_old_format(folder):
    content = {"model": state(), "x": Malicious(folder / "executed")}
    return save_torch(folder / "m.pth", content, _use_new_zipfile_serialization=False)


def other_class(folder):
    return save_torch(folder / "m.pth", {"model": state(), "args": pathlib.PurePosixPath("/")})


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
    path = save_torch(folder / "m.pth", {"model": state()})
    path.write_bytes(path.read_bytes()[:-200])
    return path


def zip_with_a_short_tensor(folder):
    """The archive is whole, but the storage of a tensor is not as long as its pickle says."""
    path, short = save_torch(folder / "whole.pth", {"model": state()}), folder / "m.pth"
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
    return save_torch(folder / "m.pth", [torch.zeros(3)])


def a_tensor(folder):
    return save_torch(folder / "m.pth", torch.zeros(3))


def no_tensors(folder):
    return save_torch(folder / "m.pth", {"model": {}})


def numbers(folder):
    return save_torch(folder / "m.pth", {"model": {**state(), "epoch": 3}})


def integers(folder):
    return save_torch(folder / "m.pth", {**state(), "cls_token": torch.zeros(1, 1, 24, dtype=torch.int64)})


def with_nan(folder):
    weights = state()
    weights["blocks.1.mlp.fc1.bias"][3] = float("nan")
    weights["norm.weight"][0] = float("inf")
    return save_torch(folder / "m.pth", {"model": weights})


def meta(folder):
    return save_torch(folder / "m.pth", {**state(), "norm.bias": torch.zeros(24, device="meta")})


def sparse(folder):
    return save_torch(folder / "m.pth", {**state(), "norm.bias": torch.ones(24).to_sparse()})


def float8(folder):
    return save_torch(folder / "m.pth", {**state(), "norm.bias": torch.ones(24).to(torch.float8_e4m3fn)})


def names_that_are_numbers(folder):
    return save_torch(folder / "m.pth", {0: torch.zeros(3)})


def torchscript(folder):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "m.pt"))
    return folder / "m.pt"


def damaged_old_format(folder):
    path = save_torch(folder / "m.pth", {"model": state()}, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    data[60:200:7] = b"\xff" * len(data[60:200:7])
    path.write_bytes(data)
    return path


def unknown_suffix(folder):
    (folder / "m.h5").write_bytes(b"hello")
    return folder / "m.h5"


BROKEN = {
    write_malicious: r"is refused: its pickle asks for (_io|builtins|io)\.open, .* Nothing in it was run",
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
def test_broken_or_malicious_file_is_refused(make, tmp_path):
    path = make(tmp_path)
    with pytest.raises(UserError, match=BROKEN[make]) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not (tmp_path / "executed").exists()


PLAIN_VALUES = {
    "numpy scalar": np.float64(0.5),
    "numpy array": np.zeros(3),
    "path": pathlib.Path("outputs"),
    "date": datetime.datetime(2026, 1, 1),
}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("value", PLAIN_VALUES.values(), ids=PLAIN_VALUES)
def test_plain_value_beside_the_weights_is_refused_with_the_code_that_mends_the_file(
    value, new_format, tmp_path, monkeypatch
):
    content = {"model": state(), "best": value}
    path = save_torch(tmp_path / "m.pth", content, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="Nothing in it was run") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    (code,) = re.findall("`(.*)`", str(error.value))
    monkeypatch.chdir(tmp_path)
    exec(code, {"torch": torch})
    model, _ = load_checkpoint(tmp_path / "weights.pth", num_attention_heads=2)
    assert_same_state(model, make_model_of_kind("encoder"))


def test_no_advice_to_run_a_malicious_file(tmp_path):
    with pytest.raises(UserError) as error:
        load_checkpoint(write_malicious(tmp_path))
    assert "weights_only=False" not in str(error.value)


def test_the_malicious_file_would_work(tmp_path):
    """Else the tests above could not fail."""
    torch.load(write_malicious(tmp_path), weights_only=False)
    assert (tmp_path / "executed").exists()


def test_old_formats_and_other_entries_load(tmp_path):
    """Torch's format before 1.6, a state alone, and under the name that timm's trainer gives it."""
    model = make_model_of_kind("encoder")
    for index, content in enumerate([model.state_dict(), {"state_dict": model.state_dict(), "arch": "vit"}]):
        for new_format in (True, False):
            path = tmp_path / f"{index}{new_format}.pt"
            save_torch(path, content, _use_new_zipfile_serialization=new_format)
            assert_same_state(load_checkpoint(path, num_attention_heads=2)[0], model)
