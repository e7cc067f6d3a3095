"""Open a folder of image files as a source."""

import importlib.util
import json
import os
from collections import Counter, deque
from pathlib import Path

from mae.data.bands import Bands
from mae.data.sources import ImageFileSource, sample_rows
from mae.utils.errors import UserError
from mae.utils.files import RUN_FILE
from mae.utils.hashing import hash_key
from mae.utils.paths import near_path
from mae.utils.text import listed


IMAGE_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
IMAGE_EXTENSIONS |= {".avif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".pnm", ".tga"}
# Images that are not read, or not as images of so many channels. A note counts those that lie in a folder.
_OTHER_IMAGES = IMAGE_EXTENSIONS | {".npy", ".heic", ".heif", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg", ".exr"}
_OTHER_IMAGES |= {".dcm", ".nii", ".czi", ".nd2", ".lif", ".svs", ".ndpi"}
# For images with another number of channels than 1 and 3.
ARRAY_EXTENSIONS = {".npy", ".tif", ".tiff"}
# Bytes from which on a file is known by pieces of its content.
LARGE_FILE = 256 * 2**20
_PIECE = 2**20
# Names of folders that hold a split, and are no classes.
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Folders that systems add: archives of macOS, thumbnails of Synology, recycle bins. Hidden ones start with a dot.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}


def open_folder(folder: str, flag: str, bands: int | Bands = 3, extensions: set[str] | None = None) -> ImageFileSource:
    """
    All image files below a folder, at any depth, in any case of the extension.

    Symbolic links are followed, each target once. Hidden files and folders, and the
    output directories of runs, hold no images.

    Args:
        folder: The folder; `~` is the user's home.
        flag: The flag that names it, for errors.
        bands: What is read of the files. A number of channels stands for all of them.
        extensions: Extensions of the files, instead of those of images with so many channels.

    Raises:
        UserError: if there is no such folder, if it is the output directory of a run, or if it holds no image.
    """
    root = os.path.expanduser(folder)
    if not os.path.isdir(root):
        problem = "is a file, not a folder" if os.path.exists(root) else f"does not exist{near_path(folder)}"
        raise UserError(f"{flag} {folder} {problem}.")
    if is_run(root):
        raise UserError(
            f"{flag} {folder} is the output directory of a run, whose pictures are no training images. Use another "
            "folder for the run or for the images."
        )
    num_channels = Bands.of(bands).num_channels
    kinds = [extensions]
    if extensions is None:
        kinds = kinds_of_files(bands)
    for extensions in kinds:
        listing = _Listing(root, extensions)
        paths = listing.walk()
        if paths:
            break
    files, index = {}, []
    for path in paths:
        name = Path(path).relative_to(root).as_posix()
        files[name] = path
        index.append((name, os.path.getsize(path)))
    if not files:
        kind = "image files" if num_channels in (1, 3) else f"files of images with {num_channels} channels"
        left_out = f" ({'; '.join(listing.left_out())})" if listing.left_out() else ""
        wanted = ", ".join(sorted(set().union(*kinds)))
        raise UserError(f"{flag} {folder} holds no {kind} ({wanted}){left_out}.")
    if extensions is ARRAY_EXTENSIONS and any(name.lower().endswith((".tif", ".tiff")) for name in files):
        if importlib.util.find_spec("tifffile") is None:
            raise UserError(f"{flag} {folder} holds TIFF files whose values are read: pip install tifffile")
    # Sizes alone say little about arrays, which are often all of one size.
    sampled = [_content(files[index[row][0]]) for row in sample_rows(len(index))]
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


def kinds_of_files(bands: int | Bands) -> list[set[str]]:
    """The extensions of the files that may hold such images. Files of the second kind count if there is no first."""
    bands = Bands.of(bands)
    if not bands.are_arrays:  # beside pictures, arrays are often something else
        return [IMAGE_EXTENSIONS, {".npy"}]
    if bands == Bands(bands.num_channels):
        return [ARRAY_EXTENSIONS]
    return [ARRAY_EXTENSIONS, IMAGE_EXTENSIONS]


def is_run(folder: str) -> bool:
    """Whether a folder is the output directory of a run: other programs may name a file run.json too."""
    try:
        identity = json.loads(Path(folder, RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(identity, dict) and {"recipe", "data", "model"} <= set(identity)


def _content(path: str) -> bytes:
    """The bytes of a file; of a scene that might not fit in memory its start, its middle and its end."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if size <= LARGE_FILE:
            return file.read()
        pieces = []
        for place in (0, size // 2, size - _PIECE):
            file.seek(place)
            pieces.append(file.read(_PIECE))
        return b"".join(pieces)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _place(name: str) -> list[tuple[bool, str]]:
    """Sorts names as a listing does: the files of a folder, then its folders."""
    *folders, file = name.split("/")
    return [(True, folder) for folder in folders] + [(False, file)]


class _Listing:
    """
    The images below a folder, and what was left out.

    Links are followed after all real files and folders are listed, and only to targets that are not listed yet. A
    target inside the root may be one that is not listed by itself, in a hidden folder of git-annex or DVC for example.
    """

    def __init__(self, root: str, extensions: set[str]):
        self.root = root
        self.extensions = extensions
        self.num_hidden = 0
        self.others: Counter[str] = Counter()
        self.broken_links: list[str] = []
        self.unreadable: list[str] = []
        self.runs: list[str] = []
        self._links: deque[str] = deque()
        self._folders: set[str] = set()  # real paths of those that were listed

    def walk(self) -> list[str]:
        """Paths of images: those of a folder by name, then those of its folders by name."""
        paths = self._list(self.root)
        if not self._links:
            return paths
        targets = {os.path.realpath(path) for path in paths}
        while self._links:
            link = self._links.popleft()
            for path in self._list(link) if os.path.isdir(link) else [link]:
                target = os.path.realpath(path)
                if target not in targets:
                    targets.add(target)
                    paths.append(path)
        return sorted(paths, key=lambda path: _place(Path(path).relative_to(self.root).as_posix()))

    def _list(self, top: str) -> list[str]:
        """Images of a folder and of its folders. Links are kept for later."""
        paths: list[str] = []
        for folder, subfolders, files in os.walk(top, onerror=lambda error: self.unreadable.append(error.filename)):
            real = os.path.realpath(folder)
            is_listed = real in self._folders
            self._folders.add(real)
            if folder != self.root and not is_listed and is_run(folder):
                self.runs.append(folder)
                is_listed = True
            if is_listed:
                subfolders.clear()
                continue
            for name in sorted(files):
                self._add(name, os.path.join(folder, name), paths)
            visible = [name for name in sorted(subfolders) if not _is_hidden(name)]
            is_link = {name: os.path.islink(os.path.join(folder, name)) for name in visible}
            self._links.extend(os.path.join(folder, name) for name in visible if is_link[name])
            subfolders[:] = [name for name in visible if not is_link[name]]
        return paths

    def _add(self, name: str, path: str, paths: list[str]) -> None:
        extension = os.path.splitext(name)[1].lower()
        is_image = extension in self.extensions
        if _is_hidden(name):
            self.num_hidden += is_image
        elif os.path.islink(path) and not os.path.exists(path):
            self.broken_links.append(path)  # whatever its name: it may have led to a folder
        elif is_image:
            (self._links if os.path.islink(path) else paths).append(path)
        elif extension in _OTHER_IMAGES:
            self.others[extension] += 1

    def left_out(self) -> list[str]:
        """What was left out, in words."""
        notes = []
        if self.broken_links:
            notes.append(f"{len(self.broken_links)} broken symbolic links are left out ({listed(self.broken_links)})")
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable)} folders that cannot be read are left out ({listed(self.unreadable)})"
            )
        if self.num_hidden:
            notes.append(f"{self.num_hidden} hidden files are left out")
        if self.others:
            kinds = listed([f"{extension} {count}" for extension, count in sorted(self.others.items())])
            notes.append(f"{self.others.total()} files of other kinds are left out ({kinds})")
        if self.runs:
            notes.append(f"the output directories of runs are left out ({listed(self.runs)})")
        return notes
