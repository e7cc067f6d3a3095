"""Recipes by name, and their list."""

import pytest

from mae.cli.recipe_files import describe_recipe, find_recipe, list_recipes
from mae.utils.errors import UserError
from tests.support.data import ROOT
from tests.support.runs import start


RECIPES = ROOT / "examples" / "recipes"
TEXT = """\
# A recipe of two lines,
# for a test.
#
#   python examples/run_mae.py --recipe mine
#
# Hardware  2 cores
# Time      3 min, measured while
#           nothing else ran
#
# Look at the views first.

max_steps: 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(TEXT)
    (tmp_path / "other.yaml").write_text("# Of run_knn.py.\n\nseed: 1\n")
    return tmp_path


def test_name_is_that_of_a_file_of_the_folder_and_a_path_is_itself(folder, monkeypatch):
    assert find_recipe("mine", folder) == str(folder / "mine.yaml")
    for path in ("mine.yaml", "some/mine", str(folder / "mine.yaml")):
        assert find_recipe(path, folder) == path
    assert find_recipe("mine", None) == "mine"
    monkeypatch.chdir(folder)
    (folder / "mine").write_text("seed: 2")
    assert find_recipe("mine", folder) == "mine"  # a file of the user wins


def test_unknown_name_suggests_the_nearest(folder):
    with pytest.raises(UserError, match="--recipe mines is neither .* Did you mean mine.*--list_recipes"):
        find_recipe("mines", folder)


def test_comment_tells_what_it_is_for(folder):
    assert describe_recipe(folder / "mine.yaml") == {
        "About": "A recipe of two lines, for a test.",
        "Hardware": "2 cores",
        "Time": "3 min, measured while nothing else ran",
    }


def test_list_has_the_recipes_of_a_script(folder):
    text = list_recipes(folder, "run_mae.py", width=40)
    assert text.startswith("mine\n  A recipe of two lines, for a test.\n  hardware  2 cores\n") and "other" not in text
    assert max(map(len, text.splitlines()[:-1])) <= 40


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_says_hardware_time_and_expectation(path):
    assert describe_recipe(path).keys() == {"About", "Hardware", "Time", "Expect"}


def test_script_lists_its_recipes_and_runs_one_by_name(tmp_path):
    done = start("--list_recipes")
    listed = {line for line in done.stdout.splitlines() if line and not line.startswith(" ")}
    assert done.returncode == 0 and {"emoji", "satellite"} <= listed and "few_images" not in listed
    done = start("--recipe", "emojy", "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and "Did you mean emoji" in done.stderr and not (tmp_path / "run").exists()
