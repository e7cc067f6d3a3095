"""Images with masks from flags: splits keep images and masks together; class weights; colours."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from mae.arguments.segmentation import SegmentationFlags
from mae.cli.segmentation import choose_class_weights, find_images, open_masked_splits, read_colours
from mae.data.decoding import decode_image
from mae.utils.errors import UserError
from modeling_mae import MAEConfig
from tests.support.masks import draw_discs, write_folders, write_masked_parquet


def open_splits(flags, max_eval_samples=None):
    return open_masked_splits(flags, flags, 3, 0, flags.max_train_samples, max_eval_samples)


def assert_pairs(pair, count):
    """Each image has the mask that was drawn with it: masks follow from images."""
    source, masks = pair
    known = {draw_discs(number)[0].tobytes(): draw_discs(number)[1] for number in range(40)}
    rows = [image for group, size in enumerate(source.group_sizes) if size for image in source.read(group, 0)]
    assert len(rows) == len(masks) == len(source) == count
    for row, data in enumerate(rows):
        pixels = decode_image(data).permute(1, 2, 0).contiguous().numpy()
        assert np.array_equal(masks.read(row).values, known[pixels.tobytes()])


@pytest.fixture
def parquet(tmp_path):
    write_masked_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", range(10), row_group_size=4)
    write_masked_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", range(10, 20), row_group_size=3)
    return tmp_path / "data"


def test_held_out_images_keep_their_masks(parquet):
    flags = SegmentationFlags(dataset_name=str(parquet), train_val_split=0.3)
    data = open_splits(flags)
    assert 4 <= len(data.validation[0]) <= 8  # rounded in each row group
    assert_pairs(data.train, 20 - len(data.validation[0]))
    assert_pairs(data.validation, len(data.validation[0]))
    assert data.coding.names == ("0", "1", "2") and data.pixels.sum() == 20 * 48 * 64


def test_samples_keep_their_masks(parquet):
    write_masked_parquet(parquet / "validation-00000-of-00001.parquet", range(30, 38))
    flags = SegmentationFlags(dataset_name=str(parquet), max_train_samples=7)
    data = open_splits(flags, 3)
    assert_pairs(data.train, 7)
    assert_pairs(data.validation, 3)
    other = open_splits(SegmentationFlags(dataset_name=str(parquet), max_train_samples=7, seed=1), 3)
    assert other.train[1].fingerprint != data.train[1].fingerprint


def test_data_set_on_disk_with_arrays_of_masks(tmp_path):
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Array2D((48, 64), "uint8")})
    columns = {"photo": [Image.fromarray(draw_discs(number)[0]) for number in range(6)]}
    columns["mask"] = [draw_discs(number)[1] for number in range(6)]
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    flags = SegmentationFlags(dataset_name=str(tmp_path / "saved"), train_val_split=0.5)
    data = open_splits(flags)
    assert_pairs(data.train, 3)
    assert_pairs(data.validation, 3)


def test_data_without_validation_images_is_an_error_that_says_what_to_do(parquet, tmp_path):
    with pytest.raises(UserError, match="no validation images. Use a data set.*--train_val_split"):
        open_splits(SegmentationFlags(dataset_name=str(parquet)))
    images, masks = write_folders(tmp_path / "folders", 3)
    with pytest.raises(UserError, match="no validation images. Pass --validation_dir and --validation_mask_dir"):
        open_splits(SegmentationFlags(train_dir=str(images), train_mask_dir=str(masks)))


def test_validation_masks_of_another_class_are_an_error(tmp_path):
    images, masks = write_folders(tmp_path / "train", 3)
    others, other_masks = write_folders(tmp_path / "validation", 2)
    mask = np.asarray(Image.open(other_masks / "000.png")).copy()
    mask[0] = 9
    Image.fromarray(mask).save(other_masks / "000.png")
    flags = SegmentationFlags(
        train_dir=str(images),
        train_mask_dir=str(masks),
        validation_dir=str(others),
        validation_mask_dir=str(other_masks),
    )
    with pytest.raises(UserError, match="--validation_mask_dir .*: value 9 is no class of the training masks"):
        open_splits(flags)


def test_balanced_weights_are_those_of_scikit_learn(parquet):
    from sklearn.utils.class_weight import compute_class_weight

    data = open_splits(SegmentationFlags(dataset_name=str(parquet), train_val_split=0.3))
    pixels = np.concatenate([draw_discs(number)[1].ravel() for number in range(20)])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=pixels)
    assert choose_class_weights(["balanced"], data) == pytest.approx(expected.tolist())
    assert choose_class_weights(["1", "2", "0.5"], data) == [1, 2, 0.5]
    assert choose_class_weights(None, data) is None
    for words in (["a"], ["1", "2"]):
        with pytest.raises(UserError, match="must be balanced, or 3 numbers, for 0, 1, 2"):
            choose_class_weights(words, data)


def test_images_of_one_name_keep_their_extension(tmp_path):
    for name in ("a.png", "a.jpg", "b/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert set(find_images(str(tmp_path), 3)) == {"a.png", "a.jpg", "b/c"}
    assert find_images(str(tmp_path / "a.png"), 3) == {"a": str(tmp_path / "a.png")}


def test_colours_are_found_by_the_names_of_the_classes(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"5": {"name": "b", "color": "#000102"}, "7": {"name": "a", "color": "#030405"}}))
    config = MAEConfig(id2label={0: "a", 1: "b"}, num_labels=2)
    assert read_colours(str(path), config) == [0x030405, 0x000102]
    with pytest.raises(UserError, match="has no color for c"):
        read_colours(str(path), MAEConfig(id2label={0: "a", 1: "c"}, num_labels=2))
