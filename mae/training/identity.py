"""The identity of a run: everything that changes its results."""

from mae.utils.text import flatten


def differences(theirs: dict, ours: dict) -> list[str]:
    """In what two identities differ, in words."""
    theirs, ours = flatten(theirs), flatten(ours)
    return [
        f"{name} was {theirs.get(name)!r}, now {ours.get(name)!r}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
