"""Recipes that come with the scripts: found by name, and listed with hardware, time and expectation."""

import re
import textwrap
from pathlib import Path

from mae.arguments.names import suggestion
from mae.utils.errors import UserError


_FIELDS = ("Hardware", "Time", "Expect")


def find_recipe(recipe: str, folder: Path | None) -> str:
    """
    The path of a recipe, which is a path or the name of a file in a folder, without its extension.

    Raises:
        UserError: if it is a name, and there is no such file.
    """
    if folder is None or Path(recipe).expanduser().exists() or Path(recipe).name != recipe or Path(recipe).suffix:
        return recipe
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if recipe not in names:
        raise UserError(
            f"--recipe {recipe} is neither a file nor a recipe of this package.{suggestion(recipe, names)} "
            "--list_recipes lists them."
        )
    return str(folder / f"{recipe}.yaml")


def describe_recipe(path: Path) -> dict[str, str]:
    """What the comment at the top of a recipe says: "About" (its first paragraph), "Hardware", "Time" and "Expect"."""
    comment = re.match(r"(#.*\n)*", path.read_text("utf-8"))[0]
    lines = [line.removeprefix("#").rstrip() for line in comment.splitlines()]
    about = lines[: lines.index("")] if "" in lines else lines
    found, field = {"About": " ".join(line.strip() for line in about)}, None
    for line in lines:
        first, _, rest = line.strip().partition(" ")
        if first in _FIELDS:
            field, found[first] = first, rest.strip()
        elif field is not None and line.startswith("  "):
            found[field] += f" {line.strip()}"
        else:
            field = None
    return found


def list_recipes(folder: Path, script: str, width: int = 100) -> str:
    """
    A list of the recipes of a script.

    Args:
        script: File name of the script, which the usage line of each of its recipes contains.
        width: Longest line.
    """
    entries: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        if script not in path.read_text("utf-8"):
            continue
        described = describe_recipe(path)
        rows = [textwrap.fill(described["About"], width, initial_indent="  ", subsequent_indent="  ")]
        for name in _FIELDS:
            if name in described:
                start = f"  {name.lower():10}"
                indent = " " * len(start)
                rows.append(textwrap.fill(described[name], width, initial_indent=start, subsequent_indent=indent))
        entries.append("\n".join([path.stem, *rows]))
    return "\n\n".join([*entries, f"Use one: --recipe NAME. The files are in {folder}."])
