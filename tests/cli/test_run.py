"""Whole runs: what happens in which order, and what a refused command leaves."""

import subprocess
import sys

from tests.support.runs import MODEL, SCRIPT, start, tree


def created(hub):
    return [request for request in hub.requests if request.method == "POST" and "repos/create" in request.path]


def test_no_repository_is_made_for_a_directory_of_another_run(data, tmp_path, hub):
    assert start("--output_dir", tmp_path / "run", *data, "--max_steps", 1).returncode == 0
    before = tree(tmp_path)
    done = start("--output_dir", tmp_path / "run", *data, "--seed", 1, "--push_to_hub", "--hub_model_id", "me/refused")
    assert done.returncode == 2 and "holds another run" in done.stderr
    assert not created(hub) and tree(tmp_path) == before


def test_refused_push_leaves_no_directory(data, tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    done = start("--output_dir", tmp_path / "run", *data, "--push_to_hub", "--hub_model_id", "me/no-right")
    assert done.returncode == 2 and "--push_to_hub" in done.stderr
    assert not (tmp_path / "run").exists()


def test_small_folder_trains_with_lanes_and_batch_that_fit(tmp_path, emoji_bytes):
    (tmp_path / "images").mkdir()
    for number in range(5):
        (tmp_path / "images" / f"{number}.png").write_bytes(emoji_bytes[number])
    flags = ["--config_overrides", MODEL, "--image_size", 32, "--patch_size", 8]
    flags += ["--train_dir", tmp_path / "images", "--max_steps", 3, "--warmup_epochs", 0]
    done = start("--output_dir", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert "--lanes 8 is lowered to 5" in done.stdout
    assert "--per_device_train_batch_size 64 is lowered to 5" in done.stdout
    again = start("--output_dir", tmp_path / "run", *flags)
    assert again.returncode == 0 and "already finished" in again.stdout


def test_first_step_needs_no_plots_and_no_trackers(data, tmp_path):
    """Their imports would delay it. Collections, off while modules are imported, are on again."""
    code = (
        "import gc, runpy, sys\n"
        "import mae.training.feed as feed\n"
        "def stop(self):\n"
        "    print('\\nmodules', gc.isenabled(), *sys.modules)\n"
        "    raise SystemExit\n"
        "feed.BatchFeed.next = stop\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = map(str, ["--output_dir", tmp_path / "run", *data, "--max_steps", 1])
    done = subprocess.run([sys.executable, "-c", code, SCRIPT, *flags], capture_output=True, text=True, check=True)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("modules")]
    _, is_collecting, *names = line.split()
    assert is_collecting == "True" and "torch" in names
    assert not {"matplotlib", "torch.utils.tensorboard", "trackio", "wandb", "timm"} & set(names)
