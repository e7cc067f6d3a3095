"""Weights under other entries of a file, and behind prefixes of their names."""

from safetensors.torch import save_file

from mae.conversion.loading import load_checkpoint
from tests.support.models import assert_same_state, make_model_of_kind, save_torch


def test_several_sets_of_weights(tmp_path):
    """timm's trainer keeps an average of the weights too; DistributedDataParallel names them otherwise."""
    model = make_model_of_kind("encoder")
    average = {name: tensor * 0 for name, tensor in model.state_dict().items()}
    path = save_torch(tmp_path / "checkpoint.pth.tar", {"state_dict": model.state_dict(), "state_dict_ema": average})
    loaded, report = load_checkpoint(path, num_attention_heads=2)
    assert_same_state(loaded, model)
    assert "state_dict_ema, other weights in the file, left out" in str(report)
    # Also in a directory; and what a file says of itself is no note of ours.
    model.config.save_pretrained(tmp_path / "folder")
    save_torch(tmp_path / "folder" / "pytorch_model.bin", {"model": model.state_dict(), "model_ema": average})
    assert "model_ema, other weights" in str(load_checkpoint(tmp_path / "folder")[1])
    save_file(model.state_dict(), tmp_path / "noted.safetensors", metadata={"notes": "hello"})
    assert not load_checkpoint(tmp_path / "noted.safetensors", num_attention_heads=2)[1].changed
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    assert_same_state(load_checkpoint(save_torch(tmp_path / "ddp.pth", wrapped), num_attention_heads=2)[0], model)
