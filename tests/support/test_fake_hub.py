"""The Hub of the tests, by the real clients: what it must do for the other tests to mean something."""

import datasets
import huggingface_hub
import pytest
from huggingface_hub import HfApi, HfFileSystem, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.data import write_parquet
from tests.support.fake_hub import OTHER_TOKEN, READ_TOKEN, Hub


@pytest.fixture
def api():
    return HfApi()


def upload(api, repo_id, files, **kwargs):
    """A repository of small files."""
    api.create_repo(repo_id, exist_ok=True, **kwargs)
    for path, data in files.items():
        repo_type = kwargs.get("repo_type")
        commit = api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id=repo_id, repo_type=repo_type)
    return commit.oid


def test_each_revision_has_its_files(api, tmp_path):
    first = upload(api, "me/revisions", {"a.txt": b"one", "deep/w.safetensors": b"weights"})
    api.create_tag("me/revisions", tag="v1")
    api.create_branch("me/revisions", branch="dev")
    second = upload(api, "me/revisions", {"a.txt": b"two"})
    wanted = {None: b"two", "main": b"two", "v1": b"one", "dev": b"one", first: b"one", second: b"two"}
    for revision, data in wanted.items():
        path = hf_hub_download("me/revisions", "a.txt", revision=revision, cache_dir=tmp_path)
        assert open(path, "rb").read() == data
    folder = snapshot_download("me/revisions", revision="v1", cache_dir=tmp_path)
    assert open(f"{folder}/deep/w.safetensors", "rb").read() == b"weights"
    assert {ref.name for ref in api.list_repo_refs("me/revisions").branches} == {"main", "dev"}
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/revisions", "a.txt", revision="v2", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/revisions", "b.txt", cache_dir=tmp_path)


def test_private_repository_is_hidden_from_others(api, tmp_path):
    upload(api, "me/secret", {"a.txt": b"one"}, private=True)
    assert hf_hub_download("me/secret", "a.txt", cache_dir=tmp_path / "mine")
    for token in (False, OTHER_TOKEN):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("me/secret", "a.txt", token=token, cache_dir=tmp_path / "theirs")
    for token in (READ_TOKEN, OTHER_TOKEN):
        with pytest.raises(HfHubHTTPError):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="b.txt", repo_id="me/secret", token=token)
    assert api.whoami()["name"] == "me"


@pytest.mark.skipif(huggingface_hub.__version__ < "2", reason="before 2.0 cards are always sent to the real Hub")
def test_cards_are_checked():
    ModelCard("---\nlicense: mit\n---\n# Hello").validate()
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: 3\n---\n").validate()


def test_listing_in_pages(api, tmp_path, monkeypatch, hub: Hub):
    monkeypatch.setattr(hub, "page_size", 2)
    upload(api, "me/many", {f"folder{index % 2}/{index}.txt": b"%d" % index for index in range(5)})
    assert len(api.list_repo_files("me/many")) == 5
    assert len(list(api.list_repo_tree("me/many", "folder0"))) == 3


def test_data_set_by_ranges(api, tmp_path, emoji_bytes, hub: Hub):
    path = write_parquet(tmp_path / "train.parquet", emoji_bytes[:40], row_group_size=10)
    upload(api, "me/images", {"data/train-00000.parquet": path.read_bytes()}, repo_type="dataset")
    address = "datasets/me/images/data/train-00000.parquet"
    with HfFileSystem().open(address, block_size=100) as file:
        file.seek(5)
        assert file.read(10) == path.read_bytes()[5:15]
    data = datasets.load_dataset("me/images", split="train", streaming=True)
    data = data.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in data] == emoji_bytes[:40]
    assert any(request.status == 206 for request in hub.requests)


def test_faults_reach_the_client(api, tmp_path, hub: Hub):
    upload(api, "me/faults", {"w.safetensors": bytes(1000)})
    hub.fault("GET", r"/cdn/", drop_after=300)
    path = hf_hub_download("me/faults", "w.safetensors", cache_dir=tmp_path)  # the client continues at byte 300
    assert open(path, "rb").read() == bytes(1000)
    hub.fault("POST", r"/commit/", status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        upload(api, "me/faults", {"b.txt": b"two"})
    assert api.list_repo_files("me/faults") == ["w.safetensors"]
