"""A run's directory: what counts as a checkpoint, what a log forgets."""

import json
import multiprocessing
import re
import resource
import signal

import pytest
import torch

from configuration_mae import MAEConfig
from mae.training.average import AveragedWeights
from mae.training.optimization import make_optimizer
from mae.training.run_directory import RunDirectory
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


def trained(seed: int, optimizer_steps: int = 2):
    torch.manual_seed(seed)
    model = MAEForPreTraining(CONFIG)
    optimizer = make_optimizer(model, 0.05, (0.9, 0.95))
    for _ in range(optimizer_steps):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
        model(torch.randn(2, 3, 16, 16)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_load_restores_model_and_optimizer(tmp_path):
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    assert run.load(*trained(0)) is None
    model, optimizer = trained(1)
    run.save(model, optimizer, {"step": 2}, save_total_limit=None)
    other, other_optimizer = trained(2, optimizer_steps=1)
    assert run.load(other, other_optimizer) == {"step": 2}
    for ours, theirs in zip(other.state_dict().values(), model.state_dict().values()):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(other_optimizer.state_dict()["state"].values(), optimizer.state_dict()["state"].values()):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not other.mae.pos_embed.requires_grad


def test_the_average_is_saved_and_restored(tmp_path):
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    model, optimizer = trained(1)
    average = AveragedWeights(model, 0.9)
    average.averages[0].fill_(7)
    run.save(model, optimizer, {"step": 2}, average)
    other, other_optimizer = trained(2)
    restored = AveragedWeights(other, 0.9)
    assert run.load(other, other_optimizer, restored) == {"step": 2}
    assert all(map(torch.equal, restored.averages, average.averages))
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    # Each is a model of its own, and the average is the final one.
    assert (MAEForPreTraining.from_pretrained(run.path / "checkpoint-2" / "ema").mae.cls_token == 7).all()
    saved = MAEForPreTraining.from_pretrained(run.path / "checkpoint-2").mae.cls_token
    assert torch.equal(saved, model.mae.cls_token) and not (saved == 7).any()
    run.save_model(model, average)
    assert (MAEForPreTraining.from_pretrained(run.path).mae.cls_token == 7).all()
    (run.path / "checkpoint-2" / "ema" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="No checkpoint can be read"):
        run.load(other, other_optimizer, restored)


def hold(path, pipe):
    """Another process in a run's directory, until it is killed."""
    RunDirectory._locks.clear()  # a fork takes the dictionary over, and not the locks
    try:
        RunDirectory(path, {})
        pipe.send("held")
    except UserError as error:
        pipe.send(str(error))
    signal.pause()


def test_two_runs_in_one_directory(tmp_path):
    """Kept out while a process is in there, and no longer: a kill leaves nothing that would have to be removed."""
    context = multiprocessing.get_context("fork")

    def another():
        ours, theirs = context.Pipe()
        process = context.Process(target=hold, args=(tmp_path / "run", theirs), daemon=True)
        process.start()
        return process, ours.recv()

    holder, said = another()
    assert said == "held"
    before = names(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="run is in use by a run under way: wait for it, stop it"):
            RunDirectory(tmp_path / "run", {}, overwrite)
    assert names(tmp_path) == before
    holder.kill()
    holder.join()
    # Of one process any number; and what a refused one closes leaves the others' lock as it is.
    RunDirectory(tmp_path / "run", {})
    with pytest.raises(UserError, match="holds another run"):
        RunDirectory(tmp_path / "run", {"seed": 1})
    holder, said = another()
    holder.kill()
    holder.join()
    assert "in use by a run under way" in said


def test_only_complete_checkpoints_count(tmp_path):
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    model, optimizer = trained(1)
    for step in (2, 10, 9):
        run.save(model, optimizer, {"step": step}, save_total_limit=None)
    (run.path / "checkpoint-30.unfinished").mkdir()
    (run.path / "checkpoint-40").mkdir()
    (run.path / "checkpoint-50").write_text("not a folder")
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert run.load(model, optimizer) == {"step": 10}
    run.save(model, optimizer, {"step": 11}, save_total_limit=2)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-10", "checkpoint-11"]
    run.save(model, optimizer, {"step": 11}, save_total_limit=2)  # twice is once
    assert [path.name for path in run.checkpoints()] == ["checkpoint-10", "checkpoint-11"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name, capsys):
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    for step in (1, 2):
        run.save(*trained(step), {"step": step}, save_total_limit=None)
    newest = run.path / "checkpoint-2" / name
    newest.write_bytes(newest.read_bytes()[:-40])
    model, optimizer = trained(3)
    assert run.load(model, optimizer) == {"step": 1}
    assert torch.equal(model.mae.cls_token, trained(1)[0].mae.cls_token)
    assert re.search(f"Passed over {run.path}/checkpoint-2, which is damaged .*\n", capsys.readouterr().err)
    # It is out of the way of what is trained again, and still there.
    aside = run.path / "checkpoint-2.set_aside"
    assert run.checkpoints() == [run.path / "checkpoint-1"] and aside.exists()
    # Named by its path it is an error, as is a directory in which none can be read. Nothing was changed by trying.
    before = [parameter.clone() for parameter in model.parameters()]
    (run.path / "checkpoint-1" / name).write_bytes(b"")
    for wanted in (str(aside), "auto", str(tmp_path / "nothing")):
        with pytest.raises(UserError, match="No checkpoint can be read.*--overwrite_output_dir to start anew"):
            run.load(model, optimizer, resume_from_checkpoint=wanted)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("damaged", [False, True])
def test_going_on_from_an_older_one(tmp_path, damaged):
    """Newer ones, damaged or not, neither outlive what is saved next nor take its place."""
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    model, optimizer = trained(1)
    for step in (10, 20):
        run.save(model, optimizer, {"step": step})
    if damaged:
        (run.path / "checkpoint-20" / "model.safetensors").write_bytes(b"")
    wanted = "auto" if damaged else str(run.path / "checkpoint-10")
    assert run.load(model, optimizer, resume_from_checkpoint=wanted) == {"step": 10}
    path = run.save(model, optimizer, {"step": 15}, save_total_limit=1)
    assert run.checkpoints() == [path] and run.load(model, optimizer) == {"step": 15}
    assert run.save(model, optimizer, {"step": 20}, save_total_limit=2) in run.checkpoints()
    assert len(run.checkpoints()) == 2 and (run.path / "checkpoint-20.set_aside").exists()
    RunDirectory(tmp_path / "run", {"seed": 2}, overwrite=True)
    assert names(run.path) == ["run.json", "run.lock"]


def test_a_checkpoint_is_not_replaced_by_the_same(tmp_path, monkeypatch):
    """There is no moment without it, where a run is stopped before it has made a step."""
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    model, optimizer = trained(1)
    run.save(model, optimizer, {"step": 1})
    monkeypatch.setattr(RunDirectory, "_remove", lambda path: pytest.fail(f"{path} is removed"))
    run.save(model, optimizer, {"step": 1}, save_total_limit=1)
    assert [path.name for path in run.path.glob("checkpoint*")] == ["checkpoint-1"]


def test_what_kills_leave_is_removed(tmp_path):
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    run.save(*trained(1), {"step": 1})
    for name in ("checkpoint-7.unfinished", "checkpoint-5.removed.unfinished", "mine.unfinished"):
        (run.path / name).mkdir()
    RunDirectory(tmp_path / "run", {"seed": 1})
    left = sorted(path.name for path in run.path.iterdir())
    assert left == ["checkpoint-1", "mine.unfinished", "run.json", "run.lock"]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    run.log({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    run.finish({"loss": float("-inf")})
    for name in ("metrics.jsonl", "train_results.json"):
        json.loads((run.path / name).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert run.read_metrics() == [{"step": 1, "loss": None, "grad_norm": None}]


@pytest.mark.parametrize("limit", [100, 6_000, 15_000])
def test_a_full_disk(tmp_path, limit):
    """A limit on the size of files, which fails the write of the weights, of the optimizer or of something before."""
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    run.save(*trained(1), {"step": 1}, save_total_limit=None)
    sizes = {path.name: path.stat().st_size for path in (run.path / "checkpoint-1").iterdir()}
    before = names(run.path)
    model, optimizer = trained(2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(RunError, match="checkpoint-2 cannot be written: .*Complete checkpoints: checkpoint-1;"):
            run.save(model, optimizer, {"step": 2}, save_total_limit=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(run.path) == before and run.load(model, optimizer) == {"step": 1}, sizes


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [1]), (2, [1, 2]), (9, [1, 2])])
def test_metrics_are_cut_back(tmp_path, step, kept):
    run = RunDirectory(tmp_path / "run", {})
    run.cut_metrics(5)  # nothing logged yet
    for number in (1, 2):
        run.log({"step": number, "loss": 0.1 + number})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    run.cut_metrics(step)
    run.log({"step": 7, "loss": 0.3})
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*kept, 7]


def test_identity(tmp_path):
    RunDirectory(tmp_path / "run", {"model": {"size": (1, 2)}, "seed": 1})
    RunDirectory(tmp_path / "run", {"model": {"size": (1, 2)}, "seed": 1})
    with pytest.raises(UserError, match=r"model.size was \[1, 2\], now \[1, 3\]; new was None, now 5"):
        RunDirectory(tmp_path / "run", {"model": {"size": (1, 3)}, "seed": 1, "new": 5})
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json cannot be read"):
        RunDirectory(tmp_path / "run", {"seed": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDirectory(tmp_path / "file", {})


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("taken", ["train_results.json", "checkpoint-500/trainer_state.json", "model.safetensors"])
def test_overwrite_never_adopts_or_destroys_what_others_wrote(tmp_path, taken):
    """transformers' Trainer writes the same names; there is no run.json to say that they are ours."""
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text('{"train_loss": 1}')
    before = names(tmp_path)
    with pytest.raises(UserError, match=f"holds {taken.split('/')[0]}, but not of a run of this script"):
        RunDirectory(tmp_path, {"seed": 1}, overwrite=True)
    assert names(tmp_path) == before and (tmp_path / taken).read_text() == '{"train_loss": 1}'


def test_overwrite_that_is_stopped_leaves_nothing_to_resume(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    model, optimizer = trained(1)
    run.save(model, optimizer, {"step": 2}, save_total_limit=None)
    run.finish({"steps": 2})

    class Killed(BaseException):
        pass

    def killed(path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("mae.training.run_directory.shutil.rmtree", killed)
        with pytest.raises(Killed):
            RunDirectory(tmp_path / "run", {"seed": 2}, overwrite=True)
    assert run.checkpoints()  # still there, and must belong to nobody
    for seed in (1, 2):
        with pytest.raises(UserError, match="was being overwritten when that was stopped"):
            RunDirectory(tmp_path / "run", {"seed": seed})
    again = RunDirectory(tmp_path / "run", {"seed": 2}, overwrite=True)
    assert again.results is None and names(again.path) == ["run.json", "run.lock"]


def test_a_start_that_was_killed_does_not_block_the_next(tmp_path):
    (tmp_path / "run.json.unfinished").write_text("{")
    RunDirectory(tmp_path, {"seed": 1})
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 1, "data_name": "its data"}


def test_overwrite_takes_odd_entries(tmp_path):
    RunDirectory(tmp_path / "run", {"seed": 1})
    (tmp_path / "run" / "checkpoint-3").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("")
    (tmp_path / "run" / "checkpoint-4").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "metrics.jsonl.unfinished").write_text("")
    (tmp_path / "run" / "mine.txt").write_text("")
    RunDirectory(tmp_path / "run", {"seed": 2}, overwrite=True)
    assert (
        names(tmp_path / "run") == ["mine.txt", "run.json", "run.lock"]
        and (tmp_path / "elsewhere" / "precious").exists()
    )


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used: Not a directory"):
        RunDirectory(tmp_path / "file" / "run", {})
