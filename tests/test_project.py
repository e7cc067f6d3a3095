"""The project as a whole: direction of the arrows, what a wheel holds, what README promises."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image

from configuration_mae import MAEConfig
from mae.arguments.recipes import ClassificationRecipe, PreTrainingRecipe
from mae.arguments.run import ClassificationArguments, PreTrainingArguments
from mae.cli.model import build_model, read_checkpoint
from mae.cli.parser import parse_arguments
from modeling_mae import MAEForPreTraining


# What a file of each ring may import of ours; arrows point inward only.
RINGS = {
    "configuration_mae.py": set(),
    "modeling_mae.py": {"configuration_mae"},
    "mae": {"configuration_mae", "modeling_mae", "mae"},
    "examples": {"configuration_mae", "modeling_mae", "mae"},
    "benchmarks": {"configuration_mae", "modeling_mae", "mae", "benchmarks", "conftest"},  # the Hub of the tests
}
OURS = {"configuration_mae", "modeling_mae", "mae", "examples", "benchmarks", "tests", "conftest"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("ring", RINGS)
def test_arrows_point_inward(ring):
    files = [ROOT / ring] if ring.endswith(".py") else list((ROOT / ring).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) & OURS <= RINGS[ring], file


def test_ring_1_needs_only_torch_and_transformers():
    allowed = set(sys.stdlib_module_names) | {"torch", "transformers", "huggingface_hub"}
    for name in ("configuration_mae.py", "modeling_mae.py"):
        assert imported(ROOT / name) <= allowed | OURS


def test_wheel_holds_every_module(tmp_path):
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
    modules = {"configuration_mae.py", "modeling_mae.py"}
    modules |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "mae").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.endswith("LICENSE") for name in names)
    assert "Requires-Python: >=3.10" in metadata and re.search(r"Requires-Dist: transformers>=5\.17", metadata)
    assert "Apache-2.0" in metadata


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_links_and_map():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        assert (ROOT / target).exists(), target
    for path in [*ROOT.glob("*.py"), *(ROOT / "mae").glob("[!_]*.py"), *(ROOT / "examples").glob("*.py")]:
        assert path.name in README, f"{path.name} is missing in README's map"


def test_readme_python_runs(tmp_path, monkeypatch):
    """The Python of README as it stands, on an untrained model in the place of the default run's."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    config = MAEConfig(image_size=64, patch_size=8, hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
    MAEForPreTraining(config).save_pretrained("outputs/run_mae")
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "photo.jpg")
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


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
def test_recipes(recipe):
    """Each says how it is launched, on what, for how long and to what end; and its flags and its model are valid."""
    text = recipe.read_text()
    command = re.search(r"accelerate launch (.*?)\n#\n", text, re.DOTALL)[1].replace("#", "").replace("\\\n", "")
    for word in ("Hardware", "Time", "Expect"):
        assert re.search(rf"^# {word} +\S", text, re.MULTILINE), word
    assert recipe.stem == "emoji" or f"examples/recipes/{recipe.name}" in command
    classifies = "run_image_classification.py" in command
    kinds = (
        (ClassificationRecipe, ClassificationArguments) if classifies else (PreTrainingRecipe, PreTrainingArguments)
    )
    for more in ([], ["--num_train_epochs", "1600"]):
        if classifies:
            more = [*more, "--model_name_or_path", "outputs/model"]
        flags, run = parse_arguments(*kinds, description="", argv=["--recipe", str(recipe), *more])
    processes = int((re.search(r"--num_processes (\d+)", command) or [0, 1])[1])
    batch = processes * run.per_device_train_batch_size * run.gradient_accumulation_steps
    assert flags.lanes % processes == 0
    if classifies:
        flags.resolve(MAEConfig())
        assert batch == {"finetune_imagenet": 1024, "linear_imagenet": 16384}.get(recipe.stem, 64)
        return
    with torch.device("meta"):
        model, _ = build_model(flags, read_checkpoint(flags))
    assert model.num_parameters() > 10**6
    stated = re.search(r"base_learning_rate: .*times ([\d,]+) / 256", text)
    if flags.learning_rate is None and recipe.stem != "emoji":
        assert batch == int(stated[1].replace(",", ""))
