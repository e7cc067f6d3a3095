"""Masks of rows: folders matched by name, columns of images and of arrays, and what the scan finds in them."""

import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from mae.data.folders import open_folder
from mae.data.mask_rows import check_masks, find_coding, find_mask_columns, match_folder, read_mask_column, scan_masks
from mae.data.masks import ClassTable, make_coding
from mae.data.opening import open_dataset
from mae.utils.errors import UserError
from tests.support.masks import draw_discs, write_folders, write_masked_parquet


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path, 6)


def match(images, masks):
    source = open_folder(str(images), "--train_dir")
    return source, match_folder(source, str(masks), "--train_mask_dir", "--train_dir")


def scan(images, masks, **options):
    source, rows = match(images, masks)
    statistics = scan_masks(rows, source, "--train_mask_dir")
    arguments = {"table": None, "ignore_value": 255, "reduce_labels": False, **options}
    return find_coding(statistics, rows, "--train_mask_dir", **arguments), statistics


def test_folder_gives_each_image_the_mask_of_its_name(folders):
    source, masks = match(*folders)
    assert len(masks) == 6
    for row, name in enumerate(source.names):
        expected = draw_discs(int(name.split("/")[-1][:3]))[1]
        assert np.array_equal(masks.read(row).values, expected)
    assert np.array_equal(masks[np.array([4, 1])].read(0).values, masks.read(4).values)


def test_image_without_mask_is_an_error_that_names_and_counts(folders):
    (folders[1] / "deep" / "001.png").unlink()
    (folders[1] / "deep" / "005.png").unlink()
    with pytest.raises(UserError, match=r"2 of 6 images have no mask. The first is deep/001.png.*deep/001.png"):
        match(*folders)


def test_mask_without_image_is_an_error_that_names_and_counts(folders):
    (folders[0] / "000.png").unlink()
    with pytest.raises(UserError, match=r"1 of 6 masks have no image. The first is 000.png"):
        match(*folders)


def test_two_masks_of_one_name_are_an_error(folders):
    np.save(folders[1] / "000.npy", np.zeros((48, 64), np.uint8))
    with pytest.raises(UserError, match="two masks of one name, 000.npy and 000.png"):
        match(*folders)


def test_empty_mask_folder_is_an_error(folders, tmp_path):
    shutil.rmtree(folders[1])
    folders[1].mkdir()
    with pytest.raises(UserError, match="--train_mask_dir .*masks holds no image files"):
        match(*folders)


def test_values_that_occur_are_the_classes(folders):
    coding, statistics = scan(*folders)
    assert coding.names == ("0", "1", "2") and coding.values == (0, 1, 2)
    expected = np.bincount(np.concatenate([draw_discs(n)[1].ravel() for n in range(6)]), minlength=3)
    assert [statistics.pixels[value] for value in range(3)] == expected.tolist()


def change(folders, name, function):
    path = folders[1] / name
    Image.fromarray(function(np.asarray(Image.open(path)).copy())).save(path)


def test_mask_of_another_size_is_an_error_that_names_it(folders):
    change(folders, "002.png", lambda mask: mask[:-1])
    with pytest.raises(UserError, match=r"1 masks differ .* first is .*002.png of 64 x 47 pixels, .* has 64 x 48"):
        scan(*folders)


def test_value_outside_the_table_is_an_error_that_names_file_and_value(folders):
    change(folders, "002.png", lambda mask: np.where(mask == 1, 77, mask))
    with pytest.raises(UserError, match=r"value 77 is no class of --id2label x.*is 1, and the first is .*002.png"):
        scan(*folders, table=ClassTable({0: "a", 1: "b", 2: "c"}, origin="--id2label x"))


def test_colours_among_values_are_an_error(folders):
    change(folders, "004.png", lambda mask: np.stack([mask] * 3, axis=2))
    with pytest.raises(UserError, match=r"000.png has values, and .*004.png has colours"):
        scan(*folders)


@pytest.mark.parametrize(
    ("value", "words"),
    [(255, r"all pixels of all 6 masks are ignored \(value 255\)"), (0, "a single class")],
)
def test_masks_of_a_single_value_are_an_error(folders, value, words):
    for path in folders[1].rglob("*.png"):
        change(folders, path.relative_to(folders[1]), lambda mask: np.full_like(mask, value))
    with pytest.raises(UserError, match=words):
        scan(*folders)


def test_single_class_of_several_is_an_error(folders):
    for path in folders[1].rglob("*.png"):
        change(folders, path.relative_to(folders[1]), lambda mask: np.ones_like(mask))
    with pytest.raises(UserError, match=r"one class \(b\)"):
        scan(*folders, table=ClassTable({0: "a", 1: "b"}))


def test_binary_masks_of_0_and_255_point_to_the_ignored_value(folders):
    for path in folders[1].rglob("*.png"):
        change(folders, path.relative_to(folders[1]), lambda mask: np.where(mask > 0, 255, 0).astype(np.uint8))
    with pytest.raises(UserError, match="besides the ignored value 255. Pass --ignore_value -1|--ignore_value -1"):
        scan(*folders)
    coding, _ = scan(*folders, ignore_value=None)
    assert coding.values == (0, 255) and coding.names == ("0", "255")


def test_damaged_masks_are_counted_and_all_damaged_is_an_error(folders):
    (folders[1] / "000.png").write_bytes(b"nothing")
    assert list(scan(*folders)[1].unreadable) == [0]
    for path in folders[1].rglob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the 6 masks can be read"):
        scan(*folders)


def test_photo_instead_of_masks_is_an_error(folders):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    for path in folders[1].rglob("*.png"):
        Image.fromarray(noise).save(path)
    with pytest.raises(UserError, match="looks like a photo"):
        scan(*folders)


def test_validation_masks_must_have_the_classes_of_training(folders):
    source, masks = match(*folders)
    statistics = scan_masks(masks, source, "--validation_mask_dir")
    coding = make_coding(ClassTable({0: "a", 1: "b"}), 255, False, False, "x")
    with pytest.raises(UserError, match="--validation_mask_dir: value 2 is no class of the training masks"):
        check_masks(statistics, masks, "--validation_mask_dir", coding, "the training masks")


# Columns


def test_columns_are_found_by_type_and_name():
    features = {"image": datasets.Image(), "label": datasets.Image(), "id": datasets.Value("int64")}
    assert find_mask_columns(features, None, None) == ("image", "label")
    assert find_mask_columns({"a": datasets.Image(), "b": datasets.Image()}, "a", "b") == ("a", "b")
    arrays = {"photo": datasets.Image(), "mask": datasets.Array2D((4, 4), "int32")}
    assert find_mask_columns(arrays, None, None) == ("photo", "mask")
    with pytest.raises(UserError, match="no column of masks by a usual name.*--mask_column_name"):
        find_mask_columns({"image": datasets.Image()}, None, None)
    with pytest.raises(UserError, match="--mask_column_name id holds int64"):
        find_mask_columns(features, None, "id")
    with pytest.raises(UserError, match="--mask_column_name nothing does not exist"):
        find_mask_columns(features, None, "nothing")


def test_column_of_images_gives_the_masks_of_its_rows(tmp_path):
    write_masked_parquet(tmp_path / "train.parquet", range(10))
    source, _ = open_dataset(str(tmp_path / "*.parquet"), find_column=lambda features, name: "image")
    masks = read_mask_column(source, "label")
    some = masks[np.array([7, 2])]
    assert len(masks) == 10 and len(some) == 2
    assert np.array_equal(some.read(0).values, draw_discs(7)[1])
    assert some.name(1) == "train.parquet row 2, column label,"
    assert scan_masks(some, source, "x").pixels.keys() == {0, 1, 2}


@pytest.mark.parametrize(
    "feature", [datasets.Array2D((48, 64), "int32"), datasets.List(datasets.List(datasets.Value("int64")))]
)
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_column_of_arrays_gives_the_masks_of_its_rows(tmp_path, feature, form):
    pairs = [draw_discs(number) for number in range(3)]
    features = datasets.Features({"image": datasets.Image(), "mask": feature})
    columns = {"image": [Image.fromarray(pair[0]) for pair in pairs], "mask": [pair[1].tolist() for pair in pairs]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    if form == "parquet":
        dataset.to_parquet(tmp_path / "train.parquet")
    else:
        dataset.save_to_disk(tmp_path)
    name = str(tmp_path / "train.parquet") if form == "parquet" else str(tmp_path)
    source, _ = open_dataset(name)
    masks = read_mask_column(source, "mask")
    assert all(np.array_equal(masks.read(row).values, pairs[row][1]) for row in range(3))


def test_row_without_mask_is_an_error_that_names_it(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    columns = {"image": [Image.fromarray(draw_discs(0)[0])] * 2, "mask": [Image.fromarray(draw_discs(0)[1]), None]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    source, _ = open_dataset(str(tmp_path / "train.parquet"), image_column_name="image")
    masks = read_mask_column(source, "mask")
    with pytest.raises(UserError, match="row 1, column mask, has no mask"):
        scan_masks(masks, source, "x")
