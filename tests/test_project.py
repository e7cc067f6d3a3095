"""The project as a whole: direction of the arrows, what a wheel holds, what README promises."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import ClassificationArguments, PreTrainingArguments
from mae.cli.model import build_model, read_checkpoint
from mae.cli.parser import parse_arguments
from mae.utils.files import CODE_FILES
from tests.support.data import ROOT


# The layers: each package may import those named here, and the model.
ALLOWED = {
    "utils": set(),
    "arguments": {"utils"},
    "data": {"utils"},
    "conversion": {"utils"},
    "hub": {"utils"},
    "evaluation": {"data", "utils"},
    "training": {"evaluation", "data", "arguments", "utils"},
    "cli": {"training", "evaluation", "data", "conversion", "hub", "arguments", "utils"},
}
MODEL = {path.stem for path in ROOT.glob("*_mae.py")}
OURS = MODEL | {"mae", "examples", "benchmarks", "tests"}
MAX_LINES = 400
MAX_TEST_LINES = 550


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules that a file imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def imported(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


def imports_within_mae(path: Path) -> set[str]:
    """Modules of `mae` that a file imports, as "data.order"."""
    return {name.removeprefix("mae.") for name in imported_modules(path) if name.startswith("mae.")}


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_what_lies_below_it(package):
    files = list((ROOT / "mae" / package).glob("*.py"))
    assert files
    for file in files:
        assert {name.split(".")[0] for name in imports_within_mae(file)} - {package} <= ALLOWED[package], file
        assert imported(file) & OURS <= MODEL | {"mae"}, file


def test_every_package_has_its_layer():
    assert {folder.parent.name for folder in (ROOT / "mae").glob("*/__init__.py")} == set(ALLOWED)
    assert [path.name for path in (ROOT / "mae").glob("*.py")] == ["__init__.py"]


def test_modules_import_each_other_in_no_circle():
    modules = {
        ".".join(path.relative_to(ROOT / "mae").with_suffix("").parts): imports_within_mae(path)
        for path in (ROOT / "mae").glob("*/*.py")
    }
    order = TopologicalSorter(modules)
    assert list(order.static_order())  # a CycleError names the circle


def test_examples_and_benchmarks_import_no_tests_and_each_other_not():
    for file in (ROOT / "examples").glob("*.py"):
        assert imported(file) & OURS <= MODEL | {"mae"}, file
    for file in (ROOT / "benchmarks").glob("*.py"):
        used = {name for name in imported_modules(file) if name.startswith("tests")}
        assert used <= {"tests.support.loopback", "tests.support.data"}, file  # the Hub of the tests


def test_modules_are_short():
    for file in (ROOT / "mae").rglob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, file
    assert len((ROOT / "modeling_mae.py").read_text(encoding="utf-8").splitlines()) <= 950


def test_test_files_are_short():
    for file in (ROOT / "tests").rglob("test_*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_TEST_LINES, file


def test_ring_1_needs_only_torch_and_transformers():
    allowed = set(sys.stdlib_module_names) | {"torch", "transformers", "huggingface_hub"}
    for name in MODEL:
        assert imported(ROOT / f"{name}.py") <= allowed | MODEL


def test_code_of_a_saved_model_is_every_module_of_the_model():
    assert set(CODE_FILES) == {f"{name}.py" for name in MODEL}


def test_wheel_holds_every_module_and_data_file(tmp_path):
    # From a copy, because setuptools leaves its build folder in the source.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "build", "*.egg-info"))
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(source), *options], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        metadata = archive.read(metadata).decode()
    modules = {f"{name}.py" for name in MODEL}
    modules |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "mae").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    data = {path for path in (ROOT / "mae").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {path.relative_to(ROOT).as_posix() for path in data} == {
        name for name in names if name.startswith("mae/") and not name.endswith(".py")
    }
    assert any(path.suffix == ".md" for path in data)  # of the model cards
    assert any(name.endswith("LICENSE") for name in names)
    assert "Requires-Python: >=3.10" in metadata and re.search(r"Requires-Dist: transformers>=5\.17", metadata)
    assert "Apache-2.0" in metadata


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["run_mae.py", "-m pytest"])
def test_readme_commands_in_a_fresh_clone(tmp_path, ending):
    (command,) = re.findall(rf"^(python3 -m venv .*{re.escape(ending)})$", README, flags=re.MULTILINE)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    done = subprocess.run(command, shell=True, cwd=tmp_path / "clone", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if ending == "run_mae.py":
        assert (tmp_path / "clone" / "outputs" / "run_mae" / "model.safetensors").exists()


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples" / "recipes").iterdir()), ids=lambda path: path.stem)
def test_recipe_says_what_it_needs_and_its_flags_are_valid(recipe):
    """Each says how it is launched, on what, for how long and to what end; and its flags and its model are valid."""
    text = recipe.read_text()
    command = re.search(r"accelerate launch (.*?)\n#\n", text, re.DOTALL)[1].replace("#", "").replace("\\\n", "")
    for word in ("Hardware", "Time", "Expect"):
        assert re.search(rf"^# {word} +\S", text, re.MULTILINE), word
    assert recipe.stem == "emoji" or f"examples/recipes/{recipe.name}" in command
    classifies = "run_image_classification.py" in command
    kinds = (ClassificationFlags, ClassificationArguments) if classifies else (PreTrainingRecipe, PreTrainingArguments)
    for more in ([], ["--num_train_epochs", "1600"]):
        if classifies:
            more = [*more, "--model_name_or_path", "outputs/model"]
        flags, run = parse_arguments(*kinds, description="", argv=["--recipe", str(recipe), *more])
    processes = int((re.search(r"--num_processes (\d+)", command) or [0, 1])[1])
    batch = processes * run.per_device_train_batch_size * run.gradient_accumulation_steps
    assert flags.lanes % processes == 0
    if classifies:
        flags = flags.resolve(MAEConfig())
        assert batch == {"finetune_imagenet": 1024, "linear_imagenet": 16384}.get(recipe.stem, 64)
        return
    with torch.device("meta"):
        model, _ = build_model(flags, read_checkpoint(flags))
    assert model.num_parameters() > 10**6
    stated = re.search(r"base_learning_rate: .*times ([\d,]+) / 256", text)
    if flags.learning_rate is None and recipe.stem != "emoji":
        assert batch == int(stated[1].replace(",", ""))


SCRIPTS = ("examples", "benchmarks")
# Modules without a test file of their own.
TESTED_ELSEWHERE = {
    "evaluation/evaluator.py": "a protocol and two dataclasses: tests/training/test_evaluations.py",
    "evaluation/segmenter.py": "what it writes: tests/examples/test_segment.py",
    "training/task.py": "a protocol: tests/training/test_pretraining.py and test_classification.py",
    "benchmarks/scaling.py": "its tables: tests/training/test_flops.py",
    "benchmarks/unchanged.py": "two checkouts, minutes: run for every refactoring",
}


def test_every_module_and_script_has_its_tests():
    modules = {path.relative_to(ROOT / "mae").as_posix() for path in (ROOT / "mae").glob("*/*.py")}
    modules |= {f"{path.parent.name}/{path.name}" for folder in SCRIPTS for path in (ROOT / folder).glob("*.py")}
    modules = {name for name in modules if not name.endswith("__init__.py")}
    tested = {name for name in modules if (ROOT / "tests" / Path(name).parent / f"test_{Path(name).name}").exists()}
    assert modules - tested == TESTED_ELSEWHERE.keys()


@pytest.mark.slow
def test_release_is_built_and_its_description_is_valid(tmp_path):
    """As CONTRIBUTING says, of the files that git has: `python -m build`, then `twine check`."""
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "build", "twine"], check=True)
    subprocess.run([python, "-m", "build", "--outdir", str(tmp_path / "dist"), str(tree)], check=True)
    files = sorted(str(path) for path in (tmp_path / "dist").iterdir())
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    done = subprocess.run([python, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout


def test_space_needs_what_the_package_and_its_page_need():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["demo"]
    assert (ROOT / "examples" / "space" / "requirements.txt").read_text().split() == needed.split()
