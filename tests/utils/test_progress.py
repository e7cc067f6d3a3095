"""Progress bars in processes of their own, because tqdm reads its variables when it is imported."""

import os
import subprocess
import sys

import pytest

from tests.support.data import ROOT


CODE = "from mae.utils.progress import ProgressBar\nfor _ in ProgressBar(range(3), desc='bar', unit='step'): pass"


@pytest.mark.parametrize("variables, shown", [({}, True), ({"TQDM_DISABLE": "1"}, False)])
def test_variable_hides_the_bar(variables, shown):
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and ("3/3" in done.stderr) == shown


def test_other_ranks_have_none():
    code = f"import mae.utils.progress as module\nmodule.is_main_process = lambda: False\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
