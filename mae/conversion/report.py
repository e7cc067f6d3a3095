"""What loading a checkpoint did, as text."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mae.conversion.layouts import Layout, names_in


def describe_mapping(names: Iterable[str], new: Iterable[str], source: Layout, target: Layout) -> list[str]:
    """Lines "name -> name (count)" for tensors by our names, some of which are new; blocks together."""
    names = list(names)
    sources, targets = names_in(source, set(names).difference(new)), names_in(target, names)

    def template(theirs: str | tuple[str, ...]) -> str:
        parts = [theirs] if isinstance(theirs, str) else theirs
        parts = [re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".*.", part)) for part in parts]
        if len(parts) == 1:
            return parts[0]
        prefix = os.path.commonprefix(parts)
        return f"{prefix}{{{','.join(part.removeprefix(prefix) for part in parts)}}}"

    counts = Counter(
        f"{template(sources.get(name, '(new)'))} -> {template(targets.get(name, '(left out)'))}" for name in names
    )
    return [f"{line} ({count})" for line, count in counts.items()]


def fold(names: Iterable[str]) -> list[str]:
    """Names that differ in the number of a block alone as one: blocks.{0-11}.norm1.weight. No line breaks in it."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        name = name if name.isprintable() else repr(name)
        number = re.search(r"(?<=\.)\d{1,3}(?=\.)", name)
        template = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        numbers.setdefault(template, []).append(int(number[0]) if number else 0)
    folded = []
    for template, found in numbers.items():
        starts = [number for number in found if number - 1 not in found]
        ends = [number for number in found if number + 1 not in found]
        ranges = ",".join(f"{start}" if start == end else f"{start}-{end}" for start, end in zip(starts, ends))
        folded.append(template.replace("\0", f"{{{ranges}}}" if len(found) > 1 else ranges))
    return folded


def listed(names: list[str], most: int = 8) -> str:
    """Names in a line; of very many the first ones and how many more."""
    names = [name if name.isprintable() else repr(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass
class LoadReport:
    """
    What [`load_checkpoint`] found and did; `str()` of it is a report for the user.

    Args:
        source: What was loaded, with the revision where it comes from the Hub.
        layout: A name of [`LAYOUTS`].
        num_tensors: How many the checkpoint has.
        description: Parts and sizes, in words.
        assumed: Settings that nothing in the checkpoint says.
        changed: What was resampled, inflated or ignored.
        new: Names of the model's tensors that were newly initialised.
        unused: Names of tensors, by ours, that the model has no place for.
        revision: The commit, where it comes from the Hub.
    """

    source: str
    layout: str
    num_tensors: int
    description: str = ""
    assumed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    revision: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.layout} layout, {self.num_tensors} tensors, {self.description}"]
        for title, items in (
            ("assumed", self.assumed),
            ("changed", self.changed),
            ("newly initialised", summarise(self.new)),
            ("left out", summarise(self.unused)),
        ):
            if items:
                lines.append(f"  {title}: {'; '.join(items)}")
        return "\n".join(lines)


def summarise(names: Iterable[str]) -> list[str]:
    """Tensor names by their part of the model: ["decoder (104 tensors)", "head (2 tensors)"]."""
    names = list(names)
    whole_decoder = "decoder.mask_token" in names
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        two = parts[0] == "mae" or (parts[0] == "decoder" and not whole_decoder)
        part = ".".join(parts[: 1 + two])
        counts[part] = counts.get(part, 0) + 1
    return [f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items()]
