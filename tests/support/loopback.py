"""The Hub of the tests: a server on loopback that every test of a process shares."""

import os
import tempfile
from pathlib import Path

from tests.support.fake_hub import Hub


# The clients read their variables when they are imported: import this module before anything of Hugging Face. Nothing
# comes from or goes to the user's cache.
FOLDER = tempfile.TemporaryDirectory()
HUB = Hub(Path(FOLDER.name) / "hub").__enter__()
for name in [name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_"))]:
    del os.environ[name]
os.environ.update(HUB.variables(Path(FOLDER.name) / "home"))


def upload(name: str, folder: Path) -> str:
    """Upload a folder as data set me/NAME; returns the commit."""
    from huggingface_hub import HfApi  # reads the variables above

    HfApi().create_repo(f"me/{name}", repo_type="dataset", exist_ok=True)
    return HfApi().upload_folder(folder_path=folder, repo_id=f"me/{name}", repo_type="dataset").oid
