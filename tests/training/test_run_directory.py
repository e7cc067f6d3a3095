"""An output directory: whose it is, who may enter, and what a refusal leaves."""

import json
import multiprocessing
import signal

import pytest

from mae.training.run_directory import Lock, RunDirectory
from mae.utils.errors import UserError


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def enter(path, identity=None, **options):
    """A run that has claimed its directory, and left it."""
    with RunDirectory(path, identity or {}, **options) as run:
        return run


def hold(path, pipe):
    """Another process in a run's directory, until it is killed."""
    Lock._held.clear()  # a fork inherits the dictionary, and not the locks
    try:
        RunDirectory(path, {}).__enter__()
        pipe.send("held")
    except UserError as error:
        pipe.send(str(error))
    signal.pause()


@pytest.fixture
def another_process(tmp_path):
    """Starts another process in the run's directory; gives it and what it reports."""
    started = []

    def start():
        context = multiprocessing.get_context("fork")
        own, other = context.Pipe()
        process = context.Process(target=hold, args=(tmp_path / "run", other), daemon=True)
        process.start()
        started.append(process)
        return process, own.recv()

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("overwrite", [False, True])
def test_directory_of_an_active_run_is_refused_and_left_alone(tmp_path, another_process, overwrite):
    _, reported = another_process()
    assert reported == "held"
    before = names(tmp_path)
    with pytest.raises(UserError, match="run is in use by a run that is active"):
        enter(tmp_path / "run", overwrite=overwrite)
    assert names(tmp_path) == before


def test_lock_ends_with_a_killed_process(tmp_path, another_process):
    holder, _ = another_process()
    holder.kill()
    holder.join()
    enter(tmp_path / "run")


def test_lock_ends_when_the_directory_is_left(tmp_path, another_process):
    """A notebook that has trained keeps no other process out."""
    with RunDirectory(tmp_path / "run", {}):
        assert "in use by a run that is active" in another_process()[1]
    assert another_process()[1] == "held"


def test_lock_of_one_process_survives_a_second_entry_that_is_refused(tmp_path, another_process):
    with RunDirectory(tmp_path / "run", {}):
        enter(tmp_path / "run")
        with pytest.raises(UserError, match="holds another run"):
            enter(tmp_path / "run", {"seed": 1})
        assert "in use by a run that is active" in another_process()[1]


def test_temporary_files_of_killed_runs_are_removed_and_no_others(tmp_path):
    enter(tmp_path)
    for name in ("checkpoint-7.unfinished", "checkpoint-5.removed.unfinished", "mine.unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / "metrics.jsonl.123.unfinished").write_text("")
    enter(tmp_path)
    assert names(tmp_path) == ["mine.unfinished", "run.json", "run.lock"]


def test_other_identity_is_refused_with_the_differences(tmp_path):
    identity = {"model": {"size": (1, 2)}, "seed": 1}
    enter(tmp_path, identity)
    enter(tmp_path, identity)
    with pytest.raises(UserError, match=r"model.size was \[1, 2\], now \[1, 3\]; new was None, now 5"):
        enter(tmp_path, {"model": {"size": (1, 3)}, "seed": 1, "new": 5})


def test_longer_run_is_refused_with_the_way_to_train_further(tmp_path):
    enter(tmp_path, {"recipe": {"max_steps": 60}})
    with pytest.raises(UserError, match=f"max_steps was 60, now 80.*--model_name_or_path {tmp_path} --output_dir"):
        enter(tmp_path, {"recipe": {"max_steps": 80}})


def test_damaged_identity_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json cannot be read.*--overwrite_output_dir"):
        enter(tmp_path)


@pytest.mark.parametrize("taken", ["train_results.json", "checkpoint-500/trainer_state.json", "model.safetensors"])
def test_overwrite_never_adopts_or_destroys_files_of_other_programs(tmp_path, taken):
    """transformers' Trainer writes the same names; no run.json says that they are this script's."""
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text('{"train_loss": 1}')
    before = names(tmp_path)
    with pytest.raises(UserError, match=f"holds {taken.split('/')[0]}, but not from a run of this script"):
        enter(tmp_path, {"seed": 1}, overwrite=True)
    assert names(tmp_path) == before and (tmp_path / taken).read_text() == '{"train_loss": 1}'


def test_overwrite_removes_everything_of_the_earlier_run(tmp_path):
    enter(tmp_path / "run", {"seed": 1})
    (tmp_path / "run" / "checkpoint-3").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("")
    (tmp_path / "run" / "checkpoint-4").symlink_to(tmp_path / "elsewhere")
    for name in ("checkpoint-2", "checkpoint-9.set_aside", "nonfinite-8"):
        (tmp_path / "run" / name).mkdir()
    (tmp_path / "run" / "metrics.jsonl.unfinished").write_text("")
    (tmp_path / "run" / "mine.txt").write_text("")
    enter(tmp_path / "run", {"seed": 2}, overwrite=True)
    assert names(tmp_path / "run") == ["mine.txt", "run.json", "run.lock"]
    assert (tmp_path / "elsewhere" / "precious").exists()


def test_overwrite_that_is_killed_leaves_nothing_to_resume(tmp_path, monkeypatch):
    run = enter(tmp_path / "run", {"seed": 1})
    (run.path / "checkpoint-2").mkdir()
    (run.path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    run.finish({"steps": 2})

    class Killed(BaseException):
        pass

    def killed(path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("mae.training.run_directory.shutil.rmtree", killed)
        with pytest.raises(Killed):
            enter(tmp_path / "run", {"seed": 2}, overwrite=True)
    assert run.checkpoints.paths()  # still there, and must belong to no run
    for seed in (1, 2):
        with pytest.raises(UserError, match="Pass --overwrite_output_dir again"):
            enter(tmp_path / "run", {"seed": seed})
    again = enter(tmp_path / "run", {"seed": 2}, overwrite=True)
    assert again.read_results() is None and names(again.path) == ["run.json", "run.lock"]


def test_start_that_was_killed_does_not_block_the_next(tmp_path):
    (tmp_path / "run.json.17.unfinished").write_text("{")
    enter(tmp_path, {"seed": 1})
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 1, "data_name": "its data"}


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_directory_that_cannot_be_made_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file|Not a directory"):
        enter(tmp_path / path)


def test_new_directory_is_removed_if_the_command_is_refused_later(tmp_path):
    """Exit code 2 promises that nothing was written."""
    with pytest.raises(UserError), RunDirectory(tmp_path / "new" / "run", {"seed": 1}) as run:
        run.describe({"seed": 1}, {"python": "3"})
        (run.path / "logs").mkdir()
        raise UserError("no right to push")
    assert names(tmp_path) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError), RunDirectory(tmp_path / "empty", {"seed": 1}):
        raise UserError("no right to push")
    assert names(tmp_path) == ["empty"]


def test_directory_with_results_is_kept_if_the_command_is_refused_later(tmp_path):
    with pytest.raises(UserError), RunDirectory(tmp_path / "run", {"seed": 1}) as run:
        run.metrics.append({"step": 1})
        raise UserError("no right to push")
    with pytest.raises(UserError), RunDirectory(tmp_path / "run", {"seed": 1}):
        raise UserError("no right to push")
    assert names(tmp_path / "run") == ["metrics.jsonl", "run.json", "run.lock"]


def test_checkpoint_to_resume_is_checked_before_anything_is_written(tmp_path):
    checkpoint = tmp_path / "checkpoint-500"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 500}))
    before = names(tmp_path)
    with pytest.raises(UserError, match="--model_name_or_path"):
        enter(tmp_path / "run", resume_from_checkpoint=str(checkpoint))
    assert names(tmp_path) == before


def test_truncate_removes_the_lines_of_later_steps_from_both_logs(tmp_path):
    run = enter(tmp_path)
    for log in (run.metrics, run.evaluations):
        for step in (1, 2, 3):
            log.append({"step": step})
    run.truncate(2)
    assert [line["step"] for line in run.metrics.read()] == [line["step"] for line in run.evaluations.read()] == [1, 2]
