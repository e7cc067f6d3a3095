"""Masks: files of every mode become class numbers, tables of classes are read, and what does not fit is an error."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mae.data.decoding import DecodingError
from mae.data.masks import IGNORED, ClassTable, MaskCoding, make_coding, read_class_table, read_mask, to_rgb
from mae.utils.errors import UserError
from tests.support.samples import encode


VALUES = np.array([[0, 1, 2], [3, 2, 255]], dtype=np.uint8)


def write(array, mode=None, format="PNG", **options):
    return encode(Image.fromarray(array, mode), format, **options)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def palette_image():
    picture = Image.fromarray(VALUES, "P")
    picture.putpalette([7, 8, 9] * 256)  # whose colours do not count
    return encode(picture, "PNG")


FILES = {
    "L": write(VALUES),
    "P": palette_image(),
    "I;16": write(VALUES.astype(np.uint16)),
    "I": write(VALUES.astype(np.int32), format="TIFF"),
    "LA": encode(Image.fromarray(VALUES).convert("LA"), "PNG"),
    "npy": npy(VALUES.astype(np.int64)),
    "npy of floats": npy(VALUES[..., None].astype(np.float32)),
}


@pytest.mark.parametrize("kind", FILES)
def test_masks_of_every_mode_have_their_values(kind):
    mask = read_mask(FILES[kind], "m.png")
    assert not mask.is_colour and np.array_equal(mask.values, VALUES)


def test_masks_of_16_bits_keep_values_beyond_255():
    values = np.array([[0, 300], [65535, 256]], dtype=np.uint16)
    coding = MaskCoding((0, 256, 300), ("a", "b", "c"), (65535,))
    assert coding.encode(read_mask(write(values), "m"), "m").tolist() == [[0, 2], [IGNORED, 1]]


def test_binary_masks_are_0_and_1():
    picture = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    assert read_mask(encode(picture, "PNG"), "m").values.tolist() == [[0, 1], [1, 0]]


def test_colours_become_the_classes_of_the_table():
    colours = np.array([[[0, 0, 0], [128, 64, 128]], [[1, 2, 3], [0, 0, 0]]], dtype=np.uint8)
    table = ClassTable({0: "none", 1: "road", 255: "void"}, {0: 0x000000, 1: 0x804080, 255: 0x010203})
    coding = make_coding(table, 255, False, True, "masks")
    for data in (write(colours), npy(colours), encode(Image.fromarray(colours).convert("RGBA"), "PNG")):
        assert coding.encode(read_mask(data, "m"), "m").tolist() == [[0, 1], [IGNORED, 0]]
    assert coding.names == ("none", "road") and to_rgb(coding.palette).tolist() == [[0, 0, 0], [128, 64, 128]]
    with pytest.raises(UserError, match="m.png has the colour #ffffff, which is no class"):
        coding.encode(read_mask(write(np.full((2, 2, 3), 255, np.uint8)), "m.png"), "m.png")


def test_coding_agrees_with_a_plain_loop():
    raw = np.random.default_rng(0).choice([0, 3, 7, 255, 9], size=(17, 23)).astype(np.uint8)
    coding = make_coding(ClassTable({3: "a", 7: "b", 9: "c", 0: "d"}), 255, False, False, "masks")
    expected = [[{3: 0, 7: 1, 9: 2, 0: 3, 255: 255}[value] for value in row] for row in raw.tolist()]
    assert coding.encode(read_mask(write(raw), "m"), "m").tolist() == expected


def test_reduce_labels_ignores_0_and_subtracts_1():
    coding = make_coding(ClassTable({0: "wall", 1: "sky"}), 255, True, False, "masks")
    assert coding.encode(read_mask(write(np.array([[0, 1, 2, 255]], np.uint8)), "m"), "m").tolist() == [
        [255, 0, 1, 255]
    ]
    with pytest.raises(UserError, match="value 3, which is no class"):
        coding.encode(read_mask(write(np.array([[3]], np.uint8)), "m"), "m")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (write(VALUES, format="JPEG"), "m.png is a JPEG"),
        (encode(Image.fromarray(VALUES).convert("CMYK"), "TIFF"), "m.png has pixels of Pillow's mode CMYK"),
        (encode(Image.new("RGBA", (2, 2), (1, 2, 3, 4)), "PNG"), "m.png is transparent"),
        (npy(np.full((2, 2), -3)), "m.png has the value -3"),
        (npy(np.full((2, 2), 0.5)), "m.png has the value 0.5"),
        (npy(np.full((2, 2), 70000)), "m.png has the value 70000"),
        (npy(np.zeros((2, 2, 5), np.uint8)), r"m.png has shape \(2, 2, 5\)"),
    ],
)
def test_file_that_is_no_mask_is_an_error_that_names_it(data, words):
    with pytest.raises(UserError, match=words):
        read_mask(data, "m.png")


@pytest.mark.parametrize("data", [b"", b"nothing", FILES["L"][:50], FILES["npy"][:90]])
def test_damaged_mask_cannot_be_decoded(data):
    with pytest.raises(DecodingError, match="mask m.png"):
        read_mask(data, "m.png")


# Tables of classes


def table_of(tmp_path, content):
    path = tmp_path / "id2label.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_class_table(str(path))


def test_table_holds_names_and_colours(tmp_path):
    assert table_of(tmp_path, {"1": "road", "0": "background"}).names == {0: "background", 1: "road"}
    content = {"0": {"name": "a", "color": "#804080"}, "7": {"name": "b", "color": [1, 2, 3]}}
    assert table_of(tmp_path, content).colours == {0: 0x804080, 7: 0x010203}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ([1], "no names"),
        ({}, "no names"),
        ({"a": "b"}, "'a': 'b' is no class"),
        ({"0": 3}, "'0': 3 is no class"),
        ({"0": {"name": "a", "color": "red"}}, "class 0: color 'red'"),
        ({"0": {"name": "a", "color": [0, 0, 256]}}, "class 0: color"),
        ({"0": {"name": "a", "color": "#000000"}, "1": "b"}, "class 1 has no color"),
        ({"0": {"name": "a", "color": "#000000"}, "1": {"name": "b", "color": [0, 0, 0]}}, "same color"),
    ],
)
def test_table_with_a_mistake_is_an_error_that_names_it(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        table_of(tmp_path, content)


def test_table_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--id2label .*nowhere.json cannot be read"):
        read_class_table(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({0: "a", 255: "b"}, r"single class \(a\) besides the ignored value 255.*--ignore_value -1"),
        ({255: "b"}, "no class besides the ignored value"),
        ({0: "a", 1: "a"}, "several classes of the name a"),
        ({number: str(number) for number in range(300)}, "299 classes, and 254 are possible"),
    ],
)
def test_classes_that_cannot_be_trained_are_an_error(table, words):
    with pytest.raises(UserError, match=words):
        make_coding(ClassTable(table), 255, False, False, "masks")


def test_masks_with_colours_need_a_table_with_colours():
    with pytest.raises(UserError, match="--id2label"):
        make_coding(ClassTable({0: "a", 1: "b"}), 255, False, True, "masks")
