"""Open a folder of images or a data set as a source."""

import glob
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, Image, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.cache.cache import Cache
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

from mae.data.parquet import ParquetSource, read_footers
from mae.data.sources import ArrowSource, ImageFileSource, Source, _sampled_rows
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key
from mae.utils.retries import retry


IMAGE_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# What may describe image files in a data set.
METADATA_EXTENSIONS = {".csv", ".jsonl", ".parquet"}
# Of images with other numbers of channels than 1 and 3.
ARRAY_EXTENSIONS = {".npy", ".tif", ".tiff"}


def find_image_column(features: dict[str, Any], image_column_name: str | None) -> str:
    """The column to read: the named one, or the only one of the Image type."""
    if image_column_name is not None:
        feature = features.get(image_column_name)
        if isinstance(feature, Image) or feature in (Value("binary"), Value("large_binary")):
            return image_column_name
        if isinstance(feature, dict) and "bytes" in feature:
            return image_column_name
        found = "there is no such column" if feature is None else f"that column holds {type(feature).__name__}"
        raise UserError(f"--image_column_name {image_column_name}: {found}. Columns: {', '.join(features)}.")
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(columns) != 1:
        found = f"several image columns ({', '.join(columns)})" if columns else "no column of type Image"
        raise UserError(
            f"The data has {found}: name one with --image_column_name. Columns: {', '.join(features) or 'none'}."
        )
    return columns[0]


def open_folder(folder: str, flag: str, num_channels: int = 3) -> ImageFileSource:
    """
    All image files below a folder, at any depth, in any case of the extension. Links are not followed.

    Args:
        folder: The folder; `~` is the user's home.
        flag: Named in the error.
        num_channels: Images of other numbers than 1 and 3 are arrays.

    Raises:
        UserError: where there is none.
    """
    root = os.path.expanduser(folder)
    if not os.path.isdir(root):
        raise UserError(f"{flag} {folder}: there is no such folder.")
    extensions = IMAGE_EXTENSIONS if num_channels in (1, 3) else ARRAY_EXTENSIONS
    files, index, num_links = {}, [], 0
    for directory, subdirectories, names in os.walk(root):
        subdirectories.sort()
        num_links += sum(os.path.islink(os.path.join(directory, name)) for name in subdirectories)
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.splitext(name)[1].lower() not in extensions:
                continue
            if os.path.islink(path):
                num_links += 1
                continue
            name = Path(path).relative_to(root).as_posix()
            files[name] = path
            index.append((name, os.path.getsize(path)))
    if not files:
        kind = "image files" if num_channels in (1, 3) else f"files of images with {num_channels} channels"
        links = f"; its {num_links} symbolic links are not followed" if num_links else ""
        raise UserError(f"{flag} {folder} holds no {kind} ({', '.join(sorted(extensions))}){links}.")
    # Sizes alone say little of arrays, which are all alike.
    sampled = [Path(files[index[row][0]]).read_bytes() for row in _sampled_rows(len(index))]
    return ImageFileSource(files, hash_key("folder", tuple(index), *sampled).hex())


def open_dataset(
    name: str,
    config_name: str | None = None,
    image_column_name: str | None = None,
    revision: str | None = None,
    retry_minutes: float = 0,
    streaming: bool = True,
    validation_splits: Sequence[str] = ("validation", "test"),
) -> tuple[Source, Source | None]:
    """
    A parquet data set: on the Hub, a folder of parquet files, a file or a pattern of files, or whatever else
    `load_dataset` takes that is parquet. One on the Hub is read at the commit that `revision` names now.

    With `streaming=False` it is downloaded, and may be of any format that `load_dataset` reads.

    Args:
        validation_splits: Splits that may be used for validation. The first that exists is.

    Returns:
        Its train split, and its validation split if there is one.
    """
    local = os.path.expanduser(name)
    paths = []
    if name.endswith(".parquet"):
        # An address (hf://, https://) goes to datasets as it is; a name with brackets may be a file after all.
        paths = [name] if "://" in name else [local] if os.path.exists(local) else sorted(glob.glob(local))
        if not paths:
            raise UserError(f"--dataset_name {name}: there is no such file.")
    on_the_hub = not paths and not os.path.isdir(local)
    if on_the_hub and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"--dataset_name {name}: there is no such folder.")
    if revision is not None and not on_the_hub:
        raise UserError(f"--dataset_revision {revision} is for data sets on the Hub; {name} is on this machine.")
    what, repository = f"--dataset_name {name} cannot be opened", name
    if on_the_hub and not constants.HF_HUB_OFFLINE:
        # Asked for by ourselves, because `datasets` takes a copy of any revision where the Hub does not answer.
        info = retry(what, retry_minutes, lambda: HfApi().dataset_info(name, revision=revision))
        revision, repository = info.sha, info.id  # an old name leads to another one
    arguments: dict[str, Any] = {"path": name if on_the_hub else local, "name": config_name, "revision": revision}
    if paths:
        escaped = [path if "://" in path else glob.escape(path) for path in paths]
        arguments = {"path": "parquet", "data_files": {"train": escaped}}

    def open_builder() -> DatasetBuilder:
        try:
            builder = load_dataset_builder(**arguments)
        except ValueError as error:
            configurations = re.search(r"(Available|available configs): \[(.*?)\]", str(error))
            if configurations is None:
                raise
            raise UserError(
                f"--dataset_name {name} has several configurations: give --dataset_config_name one of "
                f"{configurations[2].replace(chr(39), '')}{f', not {config_name}' if config_name else ''}."
            ) from None
        if streaming and isinstance(builder, Cache):
            problem = "a downloaded copy is here, which --no_streaming reads"
            if constants.HF_HUB_OFFLINE:
                raise UserError(f"{what}: HF_HUB_OFFLINE is set; {problem}.")
            raise ConnectionError(f"the Hub does not answer; {problem}")
        return builder

    builder = retry(what, retry_minutes, open_builder)
    files = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}

    def stream_parquet(split: str) -> ParquetSource:
        row_groups, footers = read_footers(files[split], retry_minutes)
        dataset = retry(
            what, retry_minutes, lambda: load_dataset(**arguments, split=split, streaming=True)._resolve_features()
        )
        column = find_image_column(dataset.features, image_column_name)
        return ParquetSource(row_groups, column, footers, revision, dict(dataset.features), retry_minutes)

    def stream_files(split: str) -> ImageFileSource:
        root = f"hf://datasets/{repository}@{revision}/"
        images = {file.removeprefix(root): file for file in files[split]}
        images = {name: file for name, file in images.items() if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS}
        contents = hash_key("files", *((name, blobs()[name]) for name in images)).hex()
        return ImageFileSource(images, contents, revision)

    @cache
    def blobs() -> dict[str, str]:
        """What git calls the contents of the files."""

        def listing() -> dict[str, str]:
            entries = HfApi().list_repo_tree(name, recursive=True, revision=revision, repo_type="dataset")
            return {entry.path: entry.blob_id for entry in entries if isinstance(entry, RepoFile)}

        return retry(what, retry_minutes, listing)

    def download(split: str) -> ArrowSource:
        dataset = retry(what, retry_minutes, lambda: load_dataset(**arguments, split=split))
        if not len(dataset):
            raise UserError(f"--dataset_name {name} holds no rows.")
        column = find_image_column(dataset.features, image_column_name)
        return retry(what, 0, lambda: ArrowSource(dataset, column, split, revision))

    if not files:  # of a downloaded copy
        files = dict.fromkeys(map(str, builder.info.splits or ()), [])
    extensions = {Path(file).suffix.lower() for split in files.values() for file in split}
    if not streaming:
        open_split = download
    elif isinstance(builder, Parquet):
        open_split = stream_parquet
    elif on_the_hub and isinstance(builder, ImageFolder) and extensions <= IMAGE_EXTENSIONS | METADATA_EXTENSIONS:
        open_split = stream_files
    else:
        raise UserError(
            f"--dataset_name {name} is not made of parquet files or image files, which can be read one by one. "
            f"--no_streaming downloads it; for a folder of images on this machine use --train_dir {name}; of most "
            "data sets the Hub has a parquet copy, --dataset_revision refs/convert/parquet."
        )
    if "train" not in files:
        raise UserError(f"--dataset_name {name} has no train split; it has {', '.join(files)}.")
    held_out = next((split for split in validation_splits if split in files), None)
    return open_split("train"), open_split(held_out) if held_out else None
