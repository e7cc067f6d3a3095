"""The model and the images of pictures on demand."""

from types import SimpleNamespace

import pytest
from PIL import Image

from mae.cli.pictures import load_model, open_images
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining, MAEModel
from tests.support.models import tiny_config


def arguments_of(model, **values):
    defaults = {"model_revision": None, "allow_pickle": False, "data_retry_minutes": 0, "masking": None}
    return SimpleNamespace(model=str(model), **defaults | {"mask_ratio": None} | values)


def test_model_has_the_masks_that_are_asked_for(small_checkpoint):
    model, _ = load_model(arguments_of(small_checkpoint, masking="grid"), True)
    assert type(model) is MAEForPreTraining and (model.config.masking, model.config.mask_ratio) == ("grid", 0.75)
    assert type(load_model(arguments_of(small_checkpoint), False)[0]) is MAEModel


def test_images_are_files_a_folder_a_dataset_or_the_embedded_ones(tmp_path, image_folder, parquet_folder, monkeypatch):
    config = tiny_config()
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert len(open_images([str(tmp_path / "a.png")] * 1, config, 0)) == 1
    assert len(open_images([str(image_folder)], config, 0)) == 60
    assert len(open_images([str(parquet_folder)], config, 0)) == 90
    with pytest.raises(UserError, match="several files, or one folder"):
        open_images([str(image_folder), str(parquet_folder)], config, 0)
    with pytest.raises(UserError, match="--images .* holds no image files"):
        (tmp_path / "empty").mkdir()
        open_images([str(tmp_path / "empty")], config, 0)


def test_images_on_the_hub(files_on_the_hub, hub):
    name, _ = files_on_the_hub
    assert len(open_images([name], tiny_config(), 0)) == 60
