"""Small real data for the tests: the embedded emoji, and folders and parquet files made from it."""

import io
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.data import EMOJI, write_parquet
from tests.support.fake_hub import Hub
from tests.support.loopback import HUB, upload


# A shell lets what it starts in the background ignore Ctrl-C, and so would the runs that tests start and stop.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# The longest files, which start first. Otherwise one process is still at the last of them while the others wait.
LONGEST = [
    "tests/training/test_resume.py",
    "tests/examples/test_run_mae.py",
    "tests/examples/test_convert_checkpoint.py",
    "tests/model/test_save_and_load.py",
    "tests/training/test_distributed.py",
    "tests/hub/test_publisher.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(autouse=True)
def same_caches() -> Iterator[None]:
    """Fails a test that leaves another cache folder behind, in which later tests find nothing."""

    names = {"huggingface_hub.constants": "HF_HUB_CACHE", "datasets.config": "HF_DATASETS_CACHE"}

    def folders() -> dict[str, str]:
        return {
            name: str(getattr(sys.modules[module], name)) for module, name in names.items() if module in sys.modules
        }

    before = folders()
    yield
    after = folders()
    assert after == after | before, f"{before} has become {after}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The Hub that all tests of this process share; faults end with the test."""
    HUB.requests.clear()
    yield HUB
    HUB.faults.clear()


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
    from tests.support.runs import TINY  # imports torch, after the variables above

    return ["--dataset_name", parquet_folder, *TINY]


# Small classification runs.


@pytest.fixture(scope="session")
def emoji_rows() -> list[dict]:
    """The held-out emoji with their labels."""
    return pq.read_table(EMOJI / "test-00000-of-00001.parquet").to_pylist()


@pytest.fixture(scope="session")
def labelled(tmp_path_factory, emoji_rows) -> Path:
    """100 training images, and 37 validation images in two row groups."""
    from tests.support.classification import write_labelled

    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder / "train-00000-of-00001.parquet", emoji_rows[:100])
    write_labelled(folder / "test-00000-of-00001.parquet", emoji_rows[100:137], row_group_size=20)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """A pre-training model of random weights, as a saved directory."""
    import torch

    from configuration_mae import MAEConfig
    from modeling_mae import MAEForPreTraining
    from tests.support.classification import SIZES

    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def labelled_flags(labelled, small_checkpoint) -> list:
    """The flags of a classification run of 12 steps of 8 images."""
    from tests.support.classification import SHORT

    return ["--dataset_name", labelled, "--model_name_or_path", small_checkpoint, *SHORT]


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "Install Debian's package chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
