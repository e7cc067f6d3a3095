"""Short segmentation runs, for the tests of several packages."""

from pathlib import Path

from tests.support.data import ROOT
from tests.support.runs import run, start


SCRIPT = ROOT / "examples" / "run_semantic_segmentation.py"
SHORT = [
    "--per_device_train_batch_size",
    4,
    "--max_steps",
    8,
    "--logging_steps",
    1,
    "--save_steps",
    3,
    "--eval_steps",
    4,
]
SHORT += ["--lanes", 4, "--shuffle_buffer_size", 16, "--warmup_epochs", 0.2, "--dataloader_num_workers", 0]
SHORT += ["--save_steps", 3, "--eval_steps", 4, "--segmentation_head", "linear", "--base_learning_rate", 0.3]


def segment(output_dir: Path, *arguments: object, processes: int = 1):
    arguments = ["--output_dir", output_dir, *arguments]
    done = start(*arguments, script=SCRIPT) if processes == 1 else run(*arguments, processes=processes, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    return done
