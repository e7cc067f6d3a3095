"""Open a data set as a source: on the Hub, Parquet files, tars, or a folder that `datasets` has saved."""

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from datasets import Array3D, DatasetBuilder, Image, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.cache.cache import Cache
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import DatasetInfo, RepoFile
from huggingface_hub.utils import validate_repo_id

from mae.data.cells import is_array_feature
from mae.data.folders import IMAGE_EXTENSIONS
from mae.data.parquet import ParquetSource, read_footers
from mae.data.sources import ArrowSource, ImageFileSource, Source
from mae.data.tars import TarSource, open_tars
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key
from mae.utils.paths import announce_hub, may_be_a_path, near_path
from mae.utils.retries import Result, explain, retry


# Files that may describe the image files of a data set.
METADATA_EXTENSIONS = {".csv", ".jsonl", ".parquet"}
# Files that may be named by themselves -> the builder of `datasets` that reads them.
_FILES = {".parquet": "parquet", ".tar": "webdataset"}
_SECONDS = 10  # for the Hub to answer whether it has a data set


def find_image_column(features: dict[str, Any], image_column_name: str | None) -> str:
    """
    The named column, or the only one of type Image, or the only one of arrays; a `UserError` if there is none or
    several.
    """
    if image_column_name is not None:
        feature = features.get(image_column_name)
        if isinstance(feature, Image) or feature in (Value("binary"), Value("large_binary")):
            return image_column_name
        if is_array_feature(feature):
            return image_column_name
        if isinstance(feature, dict) and "bytes" in feature:
            return image_column_name
        problem = "does not exist" if feature is None else f"holds {type(feature).__name__}, no images"
        raise UserError(f"--image_column_name {image_column_name} {problem}. Columns: {', '.join(features)}.")
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    columns = columns or [name for name, feature in features.items() if isinstance(feature, Array3D)]
    if len(columns) != 1:
        found = f"several image columns ({', '.join(columns)})" if columns else "no column of type Image"
        raise UserError(
            f"The data has {found}. Choose one with --image_column_name. Columns: {', '.join(features) or 'none'}."
        )
    return columns[0]


def open_dataset(
    name: str,
    config_name: str | None = None,
    image_column_name: str | None = None,
    revision: str | None = None,
    retry_minutes: float = 0,
    streaming: bool = True,
    validation_splits: Sequence[str] = ("validation", "test"),
    find_column: Callable[[dict[str, Any], str | None], str] = find_image_column,
) -> tuple[Source, Source | None]:
    """
    Open a data set: Parquet files, tars or image files on the Hub, at the commit that `revision` names now; a folder
    of Parquet files or tars, such a file or a pattern of them; or a folder that `save_to_disk` of `datasets` has
    written. With `streaming=False` it is downloaded first, and may be of any format that `load_dataset` reads.

    Args:
        validation_splits: Splits that may be used for validation. The first that exists is.
        find_column: Finds the column of images.

    Returns:
        Its train split, and its validation split if there is one.

    Raises:
        UserError: if it cannot be opened, or is of a format that cannot be streamed.
    """
    dataset = _Dataset(name, config_name, image_column_name, revision, retry_minutes, find_column)
    splits = dataset.open(streaming)
    if "train" not in splits:
        raise UserError(f"--dataset_name {name} has no train split. Its splits: {', '.join(splits)}.")
    validation = next((split for split in validation_splits if split in splits), None)
    return splits["train"](), splits[validation]() if validation else None


@dataclass
class _Dataset:
    """A data set that a flag names, and the ways to open its splits."""

    name: str
    config_name: str | None
    image_column_name: str | None
    revision: str | None
    retry_minutes: float
    find_column: Callable[[dict[str, Any], str | None], str] = find_image_column
    files: dict[str, list[str]] = field(default_factory=dict)  # of each split

    def __post_init__(self) -> None:
        self.local = os.path.expanduser(self.name)
        self.repository = self.name
        self.paths = self._file_paths()
        self.on_the_hub = not self.paths and not os.path.exists(self.local)
        self._check_name()

    def _file_paths(self) -> list[str]:
        if not self.name.endswith(tuple(_FILES)):
            return []
        # An address (hf://, https://) goes to `datasets` as it is. A name with brackets may be a file after all.
        if "://" in self.name:
            return [self.name]
        paths = [self.local] if os.path.exists(self.local) else sorted(glob.glob(self.local))
        if not paths:
            raise UserError(f"--dataset_name {self.name} does not exist{near_path(self.name)}.")
        return paths

    def _check_name(self) -> None:
        if self.on_the_hub:
            try:
                validate_repo_id(self.name)
            except HFValidationError:  # another form than owner/name
                raise UserError(f"--dataset_name {self.name} does not exist{near_path(self.name)}.") from None
        if not self.paths and os.path.isfile(self.local):
            kind = Path(self.local).suffix or "no extension"
            raise UserError(
                f"--dataset_name {self.name} is a file ({kind}), not a data set. Pass a Parquet file, a tar or a "
                "folder; unpack an archive of images and pass its folder with --train_dir."
            )
        if self.revision is not None and not self.on_the_hub:
            raise UserError(
                f"--dataset_revision {self.revision} is for data sets on the Hub, but {self.name} is a local path."
            )

    def open(self, streaming: bool) -> dict[str, Callable[[], Source]]:
        """Functions that open the splits, by name."""
        if os.path.isdir(self.local) and _is_saved_to_disk(self.local):
            return self._saved_splits()
        if self.on_the_hub and not constants.HF_HUB_OFFLINE:
            # Asked here, because `datasets` takes a cached copy of any revision if the Hub does not answer.
            info = self._ask_the_hub()
            self.revision, self.repository = info.sha, info.id  # an old name leads to another one
        try:
            builder = self._retry(lambda: self._builder(streaming))
        except UserError as error:
            if not (self.on_the_hub and constants.HF_HUB_OFFLINE):
                raise
            raise self._or_mistyped_path(error) from error.__cause__
        self.files = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
        splits = list(self.files) or list(map(str, builder.info.splits or ()))  # the latter for a downloaded copy
        open_split = self._opener(builder, streaming)
        return {split: lambda split=split: open_split(split) for split in splits}

    def _ask_the_hub(self) -> DatasetInfo:
        """What the Hub knows of the data set. A name that may be a mistyped path is asked only once."""
        minutes = 0 if may_be_a_path(self.name) else self.retry_minutes
        announce_hub(f"--dataset_name {self.name}", minutes)
        try:
            return self._retry(
                lambda: HfApi().dataset_info(self.name, revision=self.revision, timeout=_SECONDS), minutes
            )
        except UserError as error:
            raise self._or_mistyped_path(error) from error.__cause__

    def _or_mistyped_path(self, error: UserError) -> UserError:
        """The error of a name that the Hub does not give, with the nearest path if the name may be a path."""
        if error.__cause__ is None or not may_be_a_path(self.name):
            return error
        return UserError(
            f"--dataset_name {self.name} is neither a file nor a folder here{near_path(self.name)}, and cannot be "
            f"opened from the Hub: {explain(error.__cause__)}"
        )

    def _retry(self, function: Callable[[], Result], minutes: float | None = None) -> Result:
        minutes = self.retry_minutes if minutes is None else minutes
        return retry(f"--dataset_name {self.name} cannot be opened", minutes, function)

    @property
    def _arguments(self) -> dict[str, Any]:
        """Arguments of `load_dataset`."""
        if self.paths:
            escaped = [path if "://" in path else glob.escape(path) for path in self.paths]
            return {"path": _FILES[Path(self.name).suffix], "data_files": {"train": escaped}}
        path = self.name if self.on_the_hub else self.local
        return {"path": path, "name": self.config_name, "revision": self.revision}

    def _builder(self, streaming: bool) -> DatasetBuilder:
        try:
            builder = load_dataset_builder(**self._arguments)
        except ValueError as error:
            configurations = re.search(r"(Available|available configs): \[(.*?)\]", str(error))
            if configurations is None:
                raise
            given = f", not {self.config_name}" if self.config_name else ""
            names = configurations[2].replace("'", "")
            raise UserError(
                f"--dataset_name {self.name} has several configurations. Set --dataset_config_name to one of {names}"
                f"{given}."
            ) from None
        if streaming and isinstance(builder, Cache):
            problem = "a downloaded copy is here, which --no_streaming reads"
            if constants.HF_HUB_OFFLINE:
                raise UserError(f"--dataset_name {self.name} cannot be opened: HF_HUB_OFFLINE is set; {problem}.")
            raise ConnectionError(f"the Hub does not answer; {problem}")
        return builder

    def _opener(self, builder: DatasetBuilder, streaming: bool) -> Callable[[str], Source]:
        """The way to open a split of a builder's files."""
        extensions = {Path(file).suffix.lower() for split in self.files.values() for file in split}
        if not streaming:
            return self._download
        if isinstance(builder, Parquet):
            return self._stream_parquet
        if isinstance(builder, WebDataset) and extensions == {".tar"}:
            return self._stream_tars
        is_images = isinstance(builder, ImageFolder)
        if is_images and not self.on_the_hub:
            raise UserError(f"--dataset_name {self.name} is a folder of image files. Pass it with --train_dir.")
        if is_images and extensions <= IMAGE_EXTENSIONS | METADATA_EXTENSIONS:
            return self._stream_files
        kinds = ", ".join(sorted(extensions)[:5]) or builder.name
        raise UserError(
            f"--dataset_name {self.name} is made of files ({kinds}) whose rows cannot be read one by one. Pass "
            "--no_streaming to download it first. Most data sets on the Hub also have a Parquet copy: "
            "--dataset_revision refs/convert/parquet."
        )

    def _stream_parquet(self, split: str) -> ParquetSource:
        row_groups, footers = read_footers(self.files[split], self.retry_minutes)
        dataset = self._retry(lambda: load_dataset(**self._arguments, split=split, streaming=True)._resolve_features())
        column = self.find_column(dataset.features, self.image_column_name)
        return ParquetSource(row_groups, column, footers, self.revision, dict(dataset.features), self.retry_minutes)

    def _stream_tars(self, split: str) -> TarSource:
        return open_tars(self.files[split], self.image_column_name, self.revision, self.retry_minutes)

    def _stream_files(self, split: str) -> ImageFileSource:
        root = f"hf://datasets/{self.repository}@{self.revision}/"
        images = {file.removeprefix(root): file for file in self.files[split]}
        images = {name: file for name, file in images.items() if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS}
        contents = hash_key("files", *((name, self._blobs[name]) for name in images)).hex()
        return ImageFileSource(images, contents, self.revision)

    @cached_property
    def _blobs(self) -> dict[str, str]:
        """The names that git gives to the contents of the repository's files."""

        def listing() -> dict[str, str]:
            entries = HfApi().list_repo_tree(self.name, recursive=True, revision=self.revision, repo_type="dataset")
            return {entry.path: entry.blob_id for entry in entries if isinstance(entry, RepoFile)}

        return self._retry(listing)

    def _download(self, split: str) -> ArrowSource:
        dataset = self._retry(lambda: load_dataset(**self._arguments, split=split))
        return self._arrow_source(dataset, split)

    def _saved_splits(self) -> dict[str, Callable[[], Source]]:
        """The splits of a folder that `save_to_disk` has written; a single one is the training images."""
        saved = self._retry(lambda: datasets.load_from_disk(self.local), minutes=0)
        splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return {split: lambda split=split: self._arrow_source(splits[split], split) for split in splits}

    def _arrow_source(self, dataset: datasets.Dataset, split: str) -> ArrowSource:
        if not len(dataset):
            raise UserError(f"--dataset_name {self.name} holds no rows.")
        column = self.find_column(dataset.features, self.image_column_name)
        return self._retry(lambda: ArrowSource(dataset, column, split, self.revision), minutes=0)


def _is_saved_to_disk(folder: str) -> bool:
    names = set(os.listdir(folder))
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names
