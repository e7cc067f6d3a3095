"""Report what loading a checkpoint did, and name tensors briefly."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mae.conversion.layouts import Layout, names_in
from mae.utils.text import printable


@dataclass
class LoadReport:
    """
    What [`load_checkpoint`] found and did. `str()` of it is a report for the user.

    Args:
        source: What was loaded, with the commit if it is a model on the Hub.
        layout: A name of [`LAYOUTS`].
        num_tensors: How many the checkpoint has.
        description: Parts and sizes, in words.
        assumed: Settings that nothing in the checkpoint states.
        changed: What was chosen, resampled, inflated or ignored.
        new: Names of the model's tensors that were newly initialised.
        unused: Native names of tensors that the model has no place for.
        revision: The commit, if it is a model on the Hub.
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
            ("newly initialised", count_by_part(self.new)),
            ("left out", count_by_part(self.unused)),
        ):
            if items:
                lines.append(f"  {title}: {'; '.join(items)}")
        return "\n".join(lines)


def count_by_part(names: Iterable[str]) -> list[str]:
    """Count tensors by the part of the model that they belong to: ["decoder (104 tensors)", "head (2 tensors)"]."""
    names = list(names)
    whole_decoder = "decoder.mask_token" in names
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        two = parts[0] == "mae" or (parts[0] == "decoder" and not whole_decoder)
        counts[".".join(parts[: 1 + two])] += 1
    return [f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items()]


def fold_blocks(names: Iterable[str]) -> list[str]:
    """List every tensor, those that differ in the number of a block as one: blocks.{0-11}.norm1.weight."""
    numbers: dict[str, list[int]] = {}
    for name in map(printable, names):
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


def describe_mapping(names: Iterable[str], new: Iterable[str], source: Layout, target: Layout) -> list[str]:
    """Lines "source -> target (count)" of tensors with native names, all blocks together; `new` have no source."""
    names = list(names)
    sources, targets = names_in(source, set(names).difference(new)), names_in(target, names)

    def template(parts: str | tuple[str, ...]) -> str:
        parts = (parts,) if isinstance(parts, str) else parts
        parts = [re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".*.", part)) for part in parts]
        if len(parts) == 1:
            return parts[0]
        prefix = os.path.commonprefix(parts)
        return f"{prefix}{{{','.join(part.removeprefix(prefix) for part in parts)}}}"

    counts = Counter(
        f"{template(sources.get(name, '(new)'))} -> {template(targets.get(name, '(left out)'))}" for name in names
    )
    return [f"{line} ({count})" for line, count in counts.items()]
