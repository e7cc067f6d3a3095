"""Values as text: lists of which only the first are shown, names that cannot be printed, nested dictionaries."""

from collections.abc import Sequence
from typing import Any


def listed(items: Sequence[object], most: int = 5) -> str:
    """Join items in a line: the first `most`, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(printable(str(item)) for item in items[:most]) + more


def printable(name: str) -> str:
    """Escape a name that cannot be printed in a line: not UTF-8, or with control characters."""
    name = encodable(name)
    return name if name.isprintable() else repr(name)


def encodable(name: str) -> str:
    """Escape what is not UTF-8 in a name of a file system, because it can be neither printed nor written."""
    return name.encode("utf-8", "backslashreplace").decode()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested dictionaries into one with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
