"""README and docs: their Python runs, their commands parse, their links exist, and their English is plain."""

import ast
import importlib.util
import io
import re
import shlex
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from configuration_mae import MAEConfig
from mae.cli import parser
from mae.utils.errors import MAEError
from modeling_mae import MAEForPreTraining
from tests.support.data import ROOT


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = (
    "run_mae",
    "run_image_classification",
    "run_semantic_segmentation",
    "segment",
    "run_knn",
    "run_dense_features",
    "reconstruct",
    "extract_features",
    "convert_checkpoint",
    "export_onnx",
    "demo",
)
BANNED = (
    "wanted is|wanted are|is told|are told|goes on where|goes on from|of ours|of theirs|in the place of|anew|"
    "waited out|looked at|decoding process"
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


# --- Python ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def untrained_model(tmp_path, monkeypatch) -> None:
    """A current directory with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    config = MAEConfig(image_size=64, patch_size=8, hidden_size=24, num_attention_heads=2, num_hidden_layers=4)
    MAEForPreTraining(config).save_pretrained("outputs/run_mae")
    Image.new("RGB", (80, 60), "teal").save("photo.jpg")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_of_a_page_runs_as_it_stands(page, untrained_model):
    for block in blocks(page, "python"):
        code = compile(block, name_of(page), "exec")
        if "my-name/" in block:  # needs the Hub
            imports = [node for node in ast.parse(block).body if isinstance(node, (ast.Import, ast.ImportFrom))]
            code = compile(ast.Module(imports, []), name_of(page), "exec")
        exec(code, {})


# --- commands --------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Script and arguments of each command line in the code of a page."""
    found = []
    inline = re.findall(r"`([^`\n]*examples/\w+\.py[^`\n]*)`", page.read_text(encoding="utf-8"))
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for line in lines + [line for line in inline if line.startswith(("accelerate", "python", "ACCELERATE"))]:
        match = re.search(r"examples/(\w+)\.py(?!\w)(.*)", line.split(" # ")[0].rstrip("'"))
        if match:
            found.append((match[1], shlex.split(match[2])))
    return found


COMMANDS = [(page, *command) for page in PAGES for command in commands(page)]


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Parsed(Exception):
    """Ends a script when its flags are read."""


@pytest.mark.parametrize(
    "page, script, argv", COMMANDS, ids=[f"{name_of(page)}-{index}" for index, (page, *_) in enumerate(COMMANDS)]
)
def test_command_of_a_page_is_accepted_by_its_script(page, script, argv, monkeypatch):
    assert script in SCRIPTS
    module = load_script(script)

    def parse_and_end(*dataclasses, **options):
        raise Parsed(parser.parse_arguments(*dataclasses, **(options | {"argv": argv})))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(module, "parse_arguments", parse_and_end)
    try:
        module.main()
    except Parsed:
        pass
    except MAEError as error:
        pytest.fail(f"{name_of(page)}: examples/{script}.py {shlex.join(argv)}: {error}")
    else:
        pytest.fail(f"examples/{script}.py read no flags")


def test_set_up_commands_stand_in_readme_on_one_line_each():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for ending in ("examples/run_mae.py", "-m pytest"):
        assert len([line for line in lines if line.startswith("python3 -m venv ") and line.endswith(ending)]) == 1


def test_readme_fits_a_few_screens_and_answers_a_new_user():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 170
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    for subject in ("Why", "Install", "Quickstart", "Features", "Results", "When to use", "Package map", "Citation"):
        assert any(heading.startswith(subject) for heading in headings), subject
    packages = {path.parent.name for path in (ROOT / "mae").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `mae/(\w+)` \|", text, flags=re.MULTILINE)) == packages
    linked = set(re.findall(r"\]\(docs/(\w+\.md)", text))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")}


# --- links and references --------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "benchmarks").glob("*.md"))], ids=name_of)
def test_relative_links_of_a_page_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_architecture_names_every_module_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(mae/\w+/\w+\.py)` \|", text, flags=re.MULTILINE))
    assert named == {name_of(path) for path in (ROOT / "mae").glob("*/*.py") if path.name != "__init__.py"}


def test_citation_has_the_required_fields_and_the_package_s_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    for entry in (citation, citation["preferred-citation"]):
        assert entry["title"] and entry["type"] and entry["authors"]
        assert all("name" in author or {"family-names", "given-names"} <= author.keys() for author in entry["authors"])
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    assert citation["message"] and citation["license"] == "Apache-2.0" and citation["version"] == version


# --- plain English ---------------------------------------------------------------------------------------------------


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """First line and text of each piece of prose: strings and comments of a Python file, paragraphs of others."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        line = 1
        text = re.sub(r"`[^`\n]*`", "", text)  # code, and words that are quoted
        for paragraph in re.split(r"(\n\s*\n)", text):
            yield line, paragraph
            line += paragraph.count("\n")
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.append((token.start[0], token.string.lstrip("# ")))
    while comments:  # lines that follow each other are one comment
        first, words = comments.pop(0)
        last = first
        while comments and comments[0][0] == last + 1:
            last, more = comments.pop(0)
            words += "\n" + more
        yield first, words


def written_files() -> list[Path]:
    patterns = ("benchmarks/*.md", "examples/recipes/*.yaml", "examples/accelerate/*.yaml", "examples/*.py")
    patterns += ("mae/**/*.md", "mae/**/*.py", "*_mae.py", "benchmarks/*.py")
    return PAGES + [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def test_prose_has_no_banned_form():
    found = []
    for path in written_files():
        for line, text in prose(path):
            for match in re.finditer(rf"\b({BANNED.replace(' ', chr(92) + 's+')})", text, flags=re.IGNORECASE):
                where = line + text.count("\n", 0, match.start())
                found.append(f"{name_of(path)}:{where}: {' '.join(match[0].split())}")
    assert not found, "\n".join(found)
