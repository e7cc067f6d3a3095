"""Small real data for the tests: the embedded emoji, and folders and parquet files made from it."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Hub
from PIL import Image


# Before the test modules import anything of Hugging Face, which reads these variables then: the Hub of the tests is a
# server on loopback, and nothing comes from or goes to the user's cache.
FOLDER = tempfile.TemporaryDirectory()
HUB = Hub(Path(FOLDER.name) / "hub").__enter__()
for name in [name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_"))]:
    del os.environ[name]
os.environ.update(HUB.variables(Path(FOLDER.name) / "home"))

ROOT = Path(__file__).resolve().parent.parent
EMOJI = ROOT / "examples" / "data" / "emoji"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The Hub that all tests of this process share; faults end with the test."""
    HUB.requests.clear()
    yield HUB
    HUB.faults.clear()


def upload(name: str, folder: Path) -> str:
    """A folder as data set me/NAME on the Hub of the tests; the commit."""
    from huggingface_hub import HfApi  # reads the variables above

    HfApi().create_repo(f"me/{name}", repo_type="dataset", exist_ok=True)
    return HfApi().upload_folder(folder_path=folder, repo_id=f"me/{name}", repo_type="dataset").oid


@pytest.fixture(scope="session")
def emoji_bytes() -> list[bytes]:
    """The PNG files of the held-out emoji."""
    column = pq.read_table(EMOJI / "test-00000-of-00001.parquet", columns=["image"])["image"]
    return [row["bytes"] for row in column.to_pylist()]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, emoji_bytes) -> Path:
    """60 images in nested folders, of several formats and cases of extension, among other files."""
    folder = tmp_path_factory.mktemp("images")
    for index, data in enumerate(emoji_bytes[:60]):
        path = folder / f"group{index % 3}" / ("deep" if index % 2 else "") / f"{index:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index % 4 == 3:
            Image.open(io.BytesIO(data)).save(path.with_suffix(".JPG"), format="JPEG")
        else:
            path.with_suffix(".png").write_bytes(data)
    (folder / "notes.txt").write_text("not an image")
    return folder


def run_here(script: Path, *arguments: object) -> subprocess.CompletedProcess:
    """A script in this process, as `python SCRIPT ARGUMENTS` would end: most of a start of its own is imports."""
    import torch  # after the variables above
    from accelerate.state import AcceleratorState, GradientState

    argv, sigterm, threads = sys.argv, signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes of the other tests
    sys.argv, output, errors = [str(script), *map(str, arguments)], io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, sigterm)
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def write_parquet(path: Path, images: list[bytes], row_group_size: int, column: str = "image", **options: Any) -> Path:
    """A parquet file as others make them: a struct of bytes and path, with the features that `datasets` reads."""
    rows = [{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(images)]
    features = json.dumps({"info": {"features": {column: {"_type": "Image"}}}})
    schema = pa.schema(
        [(column, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))], metadata={"huggingface": features}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: rows}, schema=schema), path, row_group_size=row_group_size, **options)
    return path


@pytest.fixture(scope="session")
def parquet_folder(tmp_path_factory, emoji_bytes) -> Path:
    """90 rows in two files and seven row groups, and a held-out split."""
    folder = tmp_path_factory.mktemp("parquet")
    write_parquet(folder / "train-00000-of-00002.parquet", emoji_bytes[:50], row_group_size=16)
    write_parquet(folder / "train-00001-of-00002.parquet", emoji_bytes[50:90], row_group_size=16)
    write_parquet(folder / "test-00000-of-00001.parquet", emoji_bytes[90:102], row_group_size=6)
    return folder


@pytest.fixture(scope="session")
def parquet_on_the_hub(parquet_folder) -> tuple[str, str]:
    """The name of a data set, and the commit that it was uploaded in."""
    return "me/emoji", upload("emoji", parquet_folder)


@pytest.fixture(scope="session")
def files_on_the_hub(image_folder) -> tuple[str, str]:
    """The image folder as a data set, and the commit that it was uploaded in."""
    return "me/files", upload("files", image_folder)


@pytest.fixture(scope="session")
def data(parquet_folder) -> list:
    """The flags of a run of a small model, 24 steps of 8 images."""
    from runs import TINY  # imports torch, after the variables above

    return ["--dataset_name", parquet_folder, *TINY]
