"""examples/demo.py, as a script and as a Space, in headless Chromium."""

import re
import shutil
import subprocess

import pytest
from huggingface_hub.utils import filter_repo_objects

from modeling_mae import MAEForPreTraining
from tests.support.browser import served
from tests.support.data import ROOT
from tests.support.models import tiny_model


pytestmark = pytest.mark.browser


def test_missing_model_names_the_command_that_makes_it(browser, tmp_path):
    with served(cwd=tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("accelerate launch examples/run_mae.py").wait_for()
        assert "outputs/run_mae" in page.content()
        page.close()


def test_space_runs_from_its_files_alone(browser, tmp_path):
    """The files that docs/hub.md uploads, in one folder."""
    page = (ROOT / "docs" / "hub.md").read_text()
    patterns = re.findall(r'--include "(.*?)"', page)
    space = tmp_path / "space"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter_repo_objects(tracked.splitlines(), allow_patterns=patterns):
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, space / name)
    shutil.copytree(ROOT / "examples" / "space", space, dirs_exist_ok=True)
    tiny_model(MAEForPreTraining).save_pretrained(tmp_path / "model")
    environment = {"MAE_MODEL": str(tmp_path / "model"), "PYTHONPATH": ""}
    with served(script=space / "app.py", cwd=tmp_path, environment=environment) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text(re.compile("12 of 16 patches are removed")).wait_for()
        page.close()
