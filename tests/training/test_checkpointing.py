"""Checkpoints: what they restore, which ones count, and what a failed write leaves."""

import json
import resource
from contextlib import contextmanager

import pytest
import torch

from configuration_mae import MAEConfig
from mae.training import checkpointing
from mae.training.average import AveragedWeights
from mae.training.checkpointing import Checkpointer, TrainState
from mae.training.optimization import GuardedStep, make_optimizer
from mae.utils.errors import RunError, UserError
from modeling_mae import MAEForPreTraining


CONFIG = MAEConfig(
    image_size=16,
    patch_size=4,
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=12,
    decoder_hidden_size=8,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=8,
)


def trained(seed: int, optimizer_steps: int = 2) -> TrainState:
    torch.manual_seed(seed)
    model = MAEForPreTraining(CONFIG)
    optimizer = make_optimizer(model, 0.05, (0.9, 0.95))
    for _ in range(optimizer_steps):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
        model(torch.randn(2, 3, 16, 16)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return TrainState(model, optimizer, GuardedStep(optimizer), num_unreadable=seed, loss=seed / 2)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpointer(tmp_path, {"seed": 1})


@contextmanager
def largest_file(size: int):
    """A limit on the size of files, which fails a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_load_restores_model_optimizer_and_values(checkpoints):
    assert checkpoints.load(trained(0)) == 0
    saved = trained(1)
    checkpoints.save(saved, 2)
    restored = trained(2, optimizer_steps=1)
    assert checkpoints.load(restored) == 2
    for own, other in zip(restored.model.state_dict().values(), saved.model.state_dict().values()):
        assert torch.equal(own, other)
    moments = [state.optimizer.state_dict()["state"].values() for state in (restored, saved)]
    for own, other in zip(*moments):
        assert all(torch.equal(own[key], other[key]) for key in other)
    assert (restored.num_unreadable, restored.loss) == (1, 0.5)
    assert not restored.model.mae.pos_embed.requires_grad


def test_average_is_saved_and_restored_beside_the_weights(checkpoints, tmp_path):
    state = trained(1)
    state.average = AveragedWeights(state.model, 0.9)
    state.average.averages[0].fill_(7)
    checkpoints.save(state, 2)
    restored = trained(2)
    restored.average = AveragedWeights(restored.model, 0.9)
    assert checkpoints.load(restored) == 2
    assert all(map(torch.equal, restored.average.averages, state.average.averages))
    assert all(map(torch.equal, restored.model.state_dict().values(), state.model.state_dict().values()))
    # Each is a model by itself, and the average is the final one.
    assert (MAEForPreTraining.from_pretrained(tmp_path / "checkpoint-2" / "ema").mae.cls_token == 7).all()
    saved = MAEForPreTraining.from_pretrained(tmp_path / "checkpoint-2").mae.cls_token
    assert torch.equal(saved, state.model.mae.cls_token) and not (saved == 7).any()
    checkpoints.save_model(state)
    assert (MAEForPreTraining.from_pretrained(tmp_path).mae.cls_token == 7).all()
    (tmp_path / "checkpoint-2" / "ema" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="No checkpoint can be read"):
        checkpoints.load(restored)


def test_only_complete_checkpoints_count(checkpoints, tmp_path):
    state = trained(1)
    for step in (2, 10, 9):
        checkpoints.save(state, step)
    (tmp_path / "checkpoint-30.unfinished").mkdir()
    (tmp_path / "checkpoint-40").mkdir()
    (tmp_path / "checkpoint-50").write_text("not a folder")
    assert [path.name for path in checkpoints.paths()] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert checkpoints.load(state) == 10


def test_save_removes_the_oldest_beyond_the_limit(tmp_path):
    checkpoints, state = Checkpointer(tmp_path, {}, keep=2), trained(1)
    for step in (2, 9, 10, 10):  # twice is once
        checkpoints.save(state, step)
    assert [path.name for path in checkpoints.paths()] == ["checkpoint-9", "checkpoint-10"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_damaged_checkpoint_is_ignored_with_a_warning(checkpoints, tmp_path, name, caplog):
    for step in (1, 2):
        checkpoints.save(trained(step), step)
    newest = tmp_path / "checkpoint-2" / name
    newest.write_bytes(newest.read_bytes()[:-40])
    state = trained(3)
    assert checkpoints.load(state) == 1
    assert torch.equal(state.model.mae.cls_token, trained(1).model.mae.cls_token)
    assert f"{tmp_path}/checkpoint-2, which is damaged" in caplog.text
    # It is out of the way of the steps that are trained again, and still there.
    assert checkpoints.paths() == [tmp_path / "checkpoint-1"] and (tmp_path / "checkpoint-2.set_aside").exists()


@pytest.mark.parametrize("which", ["auto", "PATH", "NOTHING"])
def test_load_without_a_readable_checkpoint_is_refused_and_changes_nothing(checkpoints, tmp_path, which):
    checkpoints.save(trained(1), 1)
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"")
    state = trained(2)
    before = [parameter.clone() for parameter in state.model.parameters()]
    which = {"PATH": str(tmp_path / "checkpoint-1"), "NOTHING": str(tmp_path / "nothing")}.get(which, which)
    with pytest.raises(UserError, match="No checkpoint can be read|nothing is no checkpoint"):
        checkpoints.load(state, which)
    assert all(map(torch.equal, before, state.model.parameters()))


@pytest.mark.parametrize("damaged", [False, True])
def test_checkpoints_of_later_steps_are_set_aside_on_resume(tmp_path, damaged):
    """They neither outlive what is saved next nor stand for it."""
    checkpoints, state = Checkpointer(tmp_path, {"seed": 1}), trained(1)
    for step in (10, 20):
        checkpoints.save(state, step)
    if damaged:
        (tmp_path / "checkpoint-20" / "model.safetensors").write_bytes(b"")
    which = "auto" if damaged else str(tmp_path / "checkpoint-10")
    assert checkpoints.load(state, which) == 10
    checkpoints.keep = 1
    path = checkpoints.save(state, 15)
    assert checkpoints.paths() == [path] and checkpoints.load(state) == 15
    checkpoints.keep = 2
    assert checkpoints.save(state, 20) in checkpoints.paths()
    assert len(checkpoints.paths()) == 2 and (tmp_path / "checkpoint-20.set_aside").exists()


def test_same_checkpoint_is_never_removed_to_be_written_again(tmp_path, monkeypatch):
    """A run that resumes and is stopped before a step saves the step that it resumed from."""
    checkpoints, state = Checkpointer(tmp_path, {}, keep=1), trained(1)
    checkpoints.save(state, 1)
    monkeypatch.setattr(checkpointing, "_remove", lambda path: pytest.fail(f"{path} is removed"))
    checkpoints.save(state, 1)
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-1"]


@pytest.mark.parametrize("limit", [100, 6_000, 15_000])
def test_full_disk_leaves_older_checkpoints_and_nothing_else(tmp_path, limit):
    """The limits fail the write of the weights, of the optimizer, or of something before."""
    checkpoints = Checkpointer(tmp_path, {"seed": 1})
    checkpoints.save(trained(1), 1)
    before, state = names(tmp_path), trained(2)
    checkpoints.keep = 1
    with largest_file(limit), pytest.raises(RunError, match="checkpoint-2 cannot be written: .*checkpoint-1"):
        checkpoints.save(state, 2)
    assert names(tmp_path) == before and checkpoints.load(state) == 1


def test_start_over_is_refused_while_there_is_a_checkpoint(checkpoints):
    state = trained(1)
    assert checkpoints.load(state, "none") == 0
    checkpoints.save(state, 1)
    with pytest.raises(UserError, match="checkpoint-1 of this run.*--overwrite_output_dir"):
        checkpoints.load(state, "none")


def test_checkpoint_of_another_run_is_refused_with_the_differences(checkpoints, tmp_path):
    path = checkpoints.save(trained(1), 1)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="of another run: seed was 1, now 2"):
        Checkpointer(tmp_path / "other", {"seed": 2}).load(trained(1), str(path))


def test_checkpoint_of_the_transformers_trainer_is_refused_with_the_way(checkpoints, tmp_path):
    path = tmp_path / "elsewhere" / "checkpoint-500"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 500, "log_history": []}))
    with pytest.raises(UserError, match=f"--model_name_or_path {path}"):
        checkpoints.load(trained(1), str(path))
