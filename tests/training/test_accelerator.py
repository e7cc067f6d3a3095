"""What a launcher and the user have set."""

import os
import subprocess
import sys

import pytest


CHILD = "from mae.training.accelerator import is_launchers_default as f; print(f('OMP_NUM_THREADS', '1'))"
LAUNCHER = (
    "import os, subprocess, sys; os.environ.setdefault('OMP_NUM_THREADS', '1');"
    "sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
)


@pytest.mark.skipif(
    not os.path.exists("/proc/self/environ"), reason="only Linux tells what a process was started with"
)
@pytest.mark.parametrize(("set_by_the_user", "expected"), [(None, "True"), ("1", "False"), ("2", "False")])
def test_number_of_threads_that_the_user_has_set_is_kept(set_by_the_user, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if set_by_the_user:
        environment["OMP_NUM_THREADS"] = set_by_the_user
    done = subprocess.run([sys.executable, "-c", LAUNCHER, CHILD], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr
