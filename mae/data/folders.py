"""Open a folder of image files as a source."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mae.data.sources import ImageFileSource, sample_rows
from mae.utils.errors import UserError
from mae.utils.files import RUN_FILE
from mae.utils.hashing import hash_key
from mae.utils.text import listed


IMAGE_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# For images with another number of channels than 1 and 3.
ARRAY_EXTENSIONS = {".npy", ".tif", ".tiff"}
# Names of folders that hold a split, and are no classes.
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Folders of operating systems; hidden ones start with a dot.
_SYSTEM_FOLDERS = {"__MACOSX"}


def open_folder(folder: str, flag: str, num_channels: int = 3) -> ImageFileSource:
    """
    All image files below a folder, at any depth, in any case of the extension.

    Symbolic links to files and folders elsewhere are followed, each target once. Hidden files and folders, and the
    output directories of runs, hold no images.

    Args:
        folder: The folder; `~` is the user's home.
        flag: The flag that names it, for errors.
        num_channels: Images with another number of channels than 1 and 3 are arrays.

    Raises:
        UserError: if there is no such folder, or no image in it.
    """
    root = os.path.expanduser(folder)
    if not os.path.isdir(root):
        problem = "is a file, not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f"{flag} {folder} {problem}.")
    extensions = IMAGE_EXTENSIONS if num_channels in (1, 3) else ARRAY_EXTENSIONS
    listing = _Listing(root, extensions)
    files, index = {}, []
    for path in listing.walk():
        name = Path(path).relative_to(root).as_posix()
        files[name] = path
        index.append((name, os.path.getsize(path)))
    if not files:
        kind = "image files" if num_channels in (1, 3) else f"files of images with {num_channels} channels"
        left_out = f" ({'; '.join(listing.left_out())})" if listing.left_out() else ""
        raise UserError(f"{flag} {folder} holds no {kind} ({', '.join(sorted(extensions))}){left_out}.")
    if extensions is ARRAY_EXTENSIONS and any(name.lower().endswith((".tif", ".tiff")) for name in files):
        if importlib.util.find_spec("tifffile") is None:
            raise UserError(f"{flag} {folder} holds TIFF files with {num_channels} channels: pip install tifffile")
    # Sizes alone say little about arrays, which are often all of one size.
    sampled = [Path(files[index[row][0]]).read_bytes() for row in sample_rows(len(index))]
    notes = [f"{flag} {folder}: {'; '.join(listing.left_out())}."] if listing.left_out() else []
    splits = {name.split("/")[0] for name in files}
    if len(splits) > 1 and {name.lower() for name in splits} <= SPLIT_NAMES:
        first = next((name for name in sorted(splits) if name.lower().startswith("train")), sorted(splits)[0])
        notes.append(
            f"{flag} {folder} holds the folders {listed(sorted(splits))}, and the images of all of them are used. To "
            f"use one split, pass {flag} {os.path.join(folder, first)}, and another with --validation_dir."
        )
    note = "\n".join(f"Note: {note}" for note in notes) or None
    return ImageFileSource(files, hash_key("folder", tuple(index), *sampled).hex(), note=note)


@dataclass
class _Listing:
    """The images below a folder, and what was left out."""

    root: str
    extensions: set[str]
    broken_links: list[str] = field(default_factory=list)
    num_hidden: int = 0
    runs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._real_root = os.path.realpath(self.root)
        self._seen: set[str] = set()  # real paths outside the root

    def walk(self, directory: str | None = None) -> Iterator[str]:
        """Paths of images: those of a folder by name, then those of its folders by name."""
        directory = self.root if directory is None else directory
        with os.scandir(directory) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
        folders = []
        for entry in entries:
            if entry.is_dir():
                folders.append(entry)
            elif os.path.splitext(entry.name)[1].lower() in self.extensions and self._is_new(entry):
                if entry.name.startswith("."):
                    self.num_hidden += 1
                else:
                    yield entry.path
        for entry in folders:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            if os.path.exists(os.path.join(entry.path, RUN_FILE)):
                self.runs.append(entry.path)
            elif self._is_new(entry):
                yield from self.walk(entry.path)

    def _is_new(self, entry: os.DirEntry) -> bool:
        """Whether an entry is to be read: a link counts if its target exists, lies elsewhere, and is new."""
        if not entry.is_symlink():
            return True
        target = os.path.realpath(entry.path)
        if not os.path.exists(target):
            self.broken_links.append(entry.path)
            return False
        inside = target == self._real_root or target.startswith(self._real_root + os.sep)
        if inside or target in self._seen:  # inside the root it is found by itself
            return False
        self._seen.add(target)
        return True

    def left_out(self) -> list[str]:
        """What was left out, in words."""
        notes = []
        if self.broken_links:
            notes.append(f"{len(self.broken_links)} broken symbolic links are left out ({listed(self.broken_links)})")
        if self.num_hidden:
            notes.append(f"{self.num_hidden} hidden files are left out")
        if self.runs:
            notes.append(f"the output directories of runs are left out ({listed(self.runs)})")
        return notes
