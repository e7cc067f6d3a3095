"""Folders of images: what is in them, what is not, and what links lead to."""

import os

import numpy as np
import pytest

from mae.data.decoding import decode_image
from mae.data.folders import open_folder
from mae.data.labels import read_labels
from mae.utils.errors import UserError


def names(source):
    return [source.origin(group, 0)[0] for group in range(len(source))]


@pytest.fixture
def folder(tmp_path, emoji_bytes):
    """Makes image files below a folder, by their names."""

    def make(*files, root="images"):
        for number, name in enumerate(files):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(emoji_bytes[number])
        return tmp_path / root

    return make


def test_images_at_any_depth_in_any_case_of_the_extension(image_folder):
    source = open_folder(str(image_folder), "--train_dir")
    found = names(source)
    assert len(set(found)) == 60 and "group1/deep/001.png" in found and "group0/deep/003.JPG" in found
    (path,) = source.read(0, 0)
    assert decode_image(path).shape == (3, 64, 64) and source.note is None


def test_order_is_that_of_names_with_files_before_folders(folder):
    root = folder("b/1.png", "z.png", "a/2.png", "a/1.png", "m.png")
    assert names(open_folder(str(root), "--train_dir")) == ["m.png", "z.png", "a/1.png", "a/2.png", "b/1.png"]


def test_links_to_elsewhere_are_followed_once(folder, tmp_path):
    root = folder("cat/1.png", "dog/1.png")
    elsewhere = folder("1.png", "2.png", root="elsewhere")
    os.symlink(elsewhere, root / "bird")  # a linked class
    os.symlink(elsewhere, root / "bird_again")
    os.symlink(elsewhere / "1.png", root / "cat" / "2.png")  # its folder is linked too
    alone = folder("3.png", root="alone") / "3.png"
    os.symlink(alone, root / "cat" / "3.png")
    os.symlink(alone, root / "cat" / "4.png")
    source = open_folder(str(root), "--train_dir")
    assert names(source) == ["bird/1.png", "bird/2.png", "cat/1.png", "cat/3.png", "dog/1.png"]
    assert read_labels(source, "WHAT").names == ["bird", "cat", "dog"] and source.note is None


def test_links_into_the_folder_and_loops_add_nothing(folder):
    root = folder("cat/1.png")
    os.symlink(root, root / "cat" / "loop")
    os.symlink(root / "cat", root / "same")
    os.symlink(root / "cat" / "1.png", root / "cat" / "2.png")
    assert names(open_folder(str(root), "--train_dir")) == ["cat/1.png"]


def test_link_to_a_folder_above_lists_nothing_twice(folder):
    root = folder("above/root/cat/1.png", "above/other/2.png") / "above" / "root"
    os.symlink("..", root / "up")
    assert names(open_folder(str(root), "--train_dir")) == ["cat/1.png", "up/other/2.png"]


def test_links_into_a_hidden_folder_below_are_followed(folder):
    root = folder(".git/annex/one", ".git/annex/two")  # as git-annex keeps the contents
    for name, target in (("cat/1.png", "one"), ("dog/2.png", "two"), ("dog/3.png", "two")):
        (root / name).parent.mkdir(exist_ok=True)
        os.symlink(f"../.git/annex/{target}", root / name)
    source = open_folder(str(root), "--train_dir")
    assert names(source) == ["cat/1.png", "dog/2.png"] and source.note is None


def test_linked_folders_give_the_fingerprint_of_real_ones(folder, tmp_path):
    real = folder("a/1.png", "b/2.png", "b/deep/3.png", "c/4.png", root="real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("c", "a", "b"):
        os.symlink(real / name, linked / name)
    first, second = (open_folder(str(root), "--train_dir") for root in (real, linked))
    assert names(first) == names(second) and first.fingerprint == second.fingerprint


def test_broken_link_of_a_class_folder_is_counted(folder):
    root = folder("cat/1.png")
    os.symlink("/nowhere/dogs", root / "dog")
    assert "1 broken symbolic links" in open_folder(str(root), "--train_dir").note


def test_class_folder_with_a_run_json_of_another_program_is_read(folder):
    root = folder("cat/1.png")
    (root / "cat" / "run.json").write_text('{"microscope": 3}')
    source = open_folder(str(root), "--train_dir")
    assert names(source) == ["cat/1.png"] and source.note is None


def test_output_directory_of_a_run_as_train_dir_is_refused(folder):
    root = folder("loss_curve.png")
    (root / "run.json").write_text('{"recipe": {}, "data": {}, "model": {}}')
    with pytest.raises(UserError, match="--train_dir .* is the output directory of a run"):
        open_folder(str(root), "--train_dir")


def test_broken_links_are_counted_in_the_note(folder):
    root = folder("1.png")
    os.symlink(root / "gone.png", root / "2.png")
    assert "1 broken symbolic links" in open_folder(str(root), "--train_dir").note


def test_hidden_and_system_files_are_no_images_and_no_classes(folder):
    root = folder("cat/1.png", "dog/1.png", ".ipynb_checkpoints/0.png", "cat/._1.png", "__MACOSX/cat/1.png")
    source = open_folder(str(root), "--train_dir")
    assert names(source) == ["cat/1.png", "dog/1.png"] and "1 hidden files" in source.note
    assert read_labels(source, "WHAT").names == ["cat", "dog"]


def test_output_directory_of_a_run_is_no_image_folder(folder):
    root = folder("1.png", "run/loss_curve.png", "run/reconstructions/step-1.png")
    before = open_folder(str(folder("1.png", root="plain")), "--train_dir").fingerprint
    (root / "run" / "run.json").write_text('{"recipe": {}, "data": {}, "model": {}}')
    source = open_folder(str(root), "--train_dir")
    assert names(source) == ["1.png"] and source.fingerprint == before and "output directories" in source.note


@pytest.mark.parametrize(
    ("name", "problem"), [("nothing", "does not exist"), ("file", "is a file"), ("empty", "holds")]
)
def test_folder_without_images_is_refused(tmp_path, name, problem):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--train_dir .*{name} {problem}"):
        open_folder(str(tmp_path / name), "--train_dir")


def test_splits_below_the_folder_are_noted_and_are_no_classes(folder):
    root = folder("train/cat/1.png", "val/cat/1.png")
    source = open_folder(str(root), "--train_dir")
    assert f"--train_dir {root}/train" in source.note and "--validation_dir" in source.note
    with pytest.raises(UserError, match="train, val.*--validation_dir"):
        read_labels(source, "--train_dir X")


def test_class_names_are_compared_in_one_unicode_form_and_keep_their_spelling(folder):
    train = read_labels(open_folder(str(folder("cafe\u0301/1.png", "tea/1.png", root="train")), "--train_dir"), "WHAT")
    validation = open_folder(str(folder("caf\u00e9/1.png", root="val")), "--validation_dir")
    assert train.names == ["cafe\u0301", "tea"]
    assert read_labels(validation, "WHAT", names=train.names).values.tolist() == [0]


def test_pictures_of_every_extension_are_read_and_other_kinds_are_counted(folder):
    extensions = ("pgm", "jfif", "jpe", "jp2", "avif", "pnm", "pbm", "tga", "JPG")
    root = folder(*(f"{number}.{extension}" for number, extension in enumerate(extensions)))
    for name in ("a.heic", "b.HEIC", "c.dcm", "d.npy", "e.txt"):
        (root / name).write_bytes(b"x")
    source = open_folder(str(root), "--train_dir")
    assert len(source) == 9
    assert "4 files of other kinds are left out (.dcm 1, .heic 2, .npy 1)" in source.note and ".txt" not in source.note


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_arrays_alone_is_read(tmp_path, channels):
    array = np.random.default_rng(0).integers(0, 256, (12, 16, channels), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    source = open_folder(str(tmp_path), "--train_dir", channels)
    (path,) = source.read(0, 0)
    assert np.array_equal(decode_image(path, channels).permute(1, 2, 0), array)


def test_pictures_beside_arrays_of_many_channels_are_counted(folder):
    root = folder("a.png")
    np.save(root / "b.npy", np.zeros((8, 8, 5), np.uint8))
    source = open_folder(str(root), "--train_dir", 5)
    assert names(source) == ["b.npy"] and "1 files of other kinds are left out (.png 1)" in source.note
