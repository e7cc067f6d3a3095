"""The model that flags name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import ViTMAEConfig

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags, ClassificationRecipe
from mae.arguments.model import EncoderArguments
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.cli.model import (
    build_classifier,
    build_model,
    choose_statistics,
    find_bands,
    load_encoder,
    read_checkpoint,
)
from mae.data.labels import Labels
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining, make_image_processor
from tests.support.models import TINY, tiny_config
from tests.support.samples import BrokenSource, encode


LABELS = Labels(np.array([0, 1, 1]), ["cat", "dog"])
SEVERAL = Labels(np.array([[0, 1], [1, 1]], dtype=np.uint8), ["cat", "dog"])
FIELDS = ",".join(f"{name}={value}" for name, value in TINY.items())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    MAEForPreTraining(tiny_config()).save_pretrained(folder)
    return str(folder)


def test_model_from_scratch_has_the_fields_of_the_flags():
    recipe = PreTrainingRecipe(
        model_size="tiny", image_size=[64, 32], patch_size=[8], mask_ratio=0.6, image_mean=["0.5"], image_std=["0.25"],
        config_overrides="num_hidden_layers=1,decoder_num_hidden_layers=1,mask_ratio=0.5",
    )  # fmt: skip
    model, report = build_model(recipe, None)
    config = model.config
    assert report is None and (config.hidden_size, config.num_hidden_layers) == (192, 1)
    assert (config.image_size, config.patch_size, config.mask_ratio) == ((64, 32), 8, 0.6)  # a flag of its own wins
    assert (config.image_mean, config.image_std) == ([0.5] * 3, [0.25] * 3)


def test_seed_decides_new_weights():
    recipes = [PreTrainingRecipe(config_overrides=FIELDS, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (build_model(recipe, None)[0].mae.patch_embed.proj.weight for recipe in recipes)
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", [MAEConfig, ViTMAEConfig])
def test_config_name_gives_the_configuration(kind, tmp_path):
    kind(**TINY, norm_pix_loss=True).save_pretrained(tmp_path)
    recipe = PreTrainingRecipe(config_name=str(tmp_path), config_overrides="num_hidden_layers=1", image_size=[64])
    config = build_model(recipe, None)[0].config
    expected = TINY | {"num_hidden_layers": 1, "image_size": 64, "norm_pix_loss": True}
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"), [(None, "has no config.json"), ('{"model_type": "vit"}', "is of a vit model")]
)
def test_config_name_that_is_no_masked_autoencoder_is_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"^--config_name .*{message}"):
        build_model(PreTrainingRecipe(config_name=str(tmp_path)), None)


def test_image_processor_name_gives_mean_and_std(tmp_path):
    make_image_processor(tiny_config(image_mean=[0.3] * 3, image_std=[0.2] * 3)).save_pretrained(tmp_path)
    flags = {"image_processor_name": str(tmp_path), "config_overrides": FIELDS}
    config = build_model(PreTrainingRecipe(**flags), None)[0].config
    assert (config.image_mean, config.image_std) == ([0.3] * 3, [0.2] * 3)
    config = build_model(PreTrainingRecipe(**flags, image_mean=["0.5"], image_std=["0.5"]), None)[0].config
    assert config.image_mean == [0.5] * 3


def test_channels_are_known_before_the_model_is_built(checkpoint, tmp_path):
    tiny_config(num_channels=5, image_mean=0.5, image_std=0.5).save_pretrained(tmp_path)
    assert find_bands(PreTrainingRecipe(), None).num_channels == 3
    assert find_bands(PreTrainingRecipe(config_overrides="num_channels=4"), None).num_channels == 4
    assert find_bands(PreTrainingRecipe(config_name=str(tmp_path)), None).num_channels == 5
    recipe = PreTrainingRecipe(model_name_or_path=checkpoint)
    assert find_bands(recipe, read_checkpoint(recipe)).num_channels == 3


def test_checkpoint_gives_its_weights_and_a_report(checkpoint):
    recipe = PreTrainingRecipe(model_name_or_path=checkpoint)
    model, report = build_model(recipe, read_checkpoint(recipe))
    expected = MAEForPreTraining.from_pretrained(checkpoint).state_dict()
    assert report is not None
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_size": "giant"}, "size='giant' is not a known model size"),
        ({"image_size": [60], "patch_size": [8]}, "image_size=60 is not divisible by patch_size=8"),
        ({"config_overrides": "hidden_size=10"}, "hidden_size=10 must be divisible by num_attention_heads"),
    ],
)
def test_impossible_configuration_is_one_line(flags, message):
    with pytest.raises(UserError) as error:
        build_model(PreTrainingRecipe(**flags), None)
    assert message in str(error.value) and "\n" not in str(error.value)


# Classifiers


@pytest.mark.parametrize(
    ("flags", "pooling", "drop_path", "trainable"),
    [
        ({}, "mean", 0.1, {"mae", "head", "fc_norm"}),
        ({"protocol": "linear"}, "cls", 0.0, {"head"}),
        ({"protocol": "partial", "num_trainable_blocks": 1}, "mean", 0.1, {"mae", "head", "fc_norm"}),
    ],
)
def test_classifier_follows_the_protocol(checkpoint, flags, pooling, drop_path, trainable):
    flags = ClassificationFlags(model_name_or_path=checkpoint, **flags)
    model, report, recipe = build_classifier(flags, read_checkpoint(flags), LABELS)
    assert isinstance(recipe, ClassificationRecipe) and report is not None
    assert (recipe.drop_path_rate, model.config.pooling) == (drop_path, pooling)
    assert model.config.id2label == {0: "cat", 1: "dog"} and flags.drop_path_rate is None
    names = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names - {"head_norm"} <= trainable and "head" in names
    if flags.protocol == "partial":
        blocks = {name.split(".")[2] for name, parameter in model.named_parameters()
                  if parameter.requires_grad and name.startswith("mae.blocks")}  # fmt: skip
        assert blocks == {"1"}


def test_classifier_of_several_labels_has_no_smoothing():
    flags = ClassificationFlags(from_scratch=True, config_overrides=FIELDS)
    model, _, recipe = build_classifier(flags, None, SEVERAL)
    assert recipe.label_smoothing_factor == 0.0 and model.config.problem_type == "multi_label_classification"
    with pytest.raises(UserError, match="--label_smoothing_factor 0.1"):
        build_classifier(
            ClassificationFlags(from_scratch=True, config_overrides=FIELDS, label_smoothing_factor=0.1), None, SEVERAL
        )


def test_classifier_needs_a_checkpoint_or_from_scratch():
    with pytest.raises(UserError, match="--model_name_or_path .*--from_scratch"):
        build_classifier(ClassificationFlags(), None, LABELS)


# Statistics and encoders


def test_range_of_pictures_is_that_of_their_values_and_not_of_8_bits():
    """A radiograph has 12 bits in a PNG of 16."""
    values = np.random.default_rng(0).integers(0, 4096, (8, 48, 48)).astype(np.uint16)
    source = BrokenSource([encode(Image.fromarray(image), "PNG") for image in values])
    recipe = PreTrainingRecipe(
        value_range=["auto"], image_mean=["auto"], config_overrides=f"{FIELDS},num_channels=1", lanes=1
    )
    model, _ = build_model(recipe, None)
    note = choose_statistics(model, source, recipe, RunArguments())
    assert "Measured on 8 images: --value_range " in note and "--image_mean [0." in note
    assert model.config.value_range == [pytest.approx(np.percentile(values, (0.5, 99.5)), abs=5)]
    assert model.config.image_mean == pytest.approx([0.5], abs=0.02)


def test_images_of_other_channels_need_statistics():
    model = SimpleNamespace(config=tiny_config(num_channels=5))
    with pytest.raises(UserError, match="^Images of 5 channels have no default mean and std"):
        choose_statistics(model, None, PreTrainingRecipe(), RunArguments())
    model = SimpleNamespace(config=tiny_config())
    assert choose_statistics(model, None, PreTrainingRecipe(), RunArguments()) is None


def test_encoder_is_loaded_for_another_size(checkpoint):
    arguments = EncoderArguments(model_name_or_path=checkpoint, image_size=[64])
    encoder, _ = load_encoder(arguments, Accelerator(cpu=True))
    assert encoder.config.image_size == 64 and not encoder.training


@pytest.mark.parametrize("layer", [3, -3])
def test_layer_that_the_encoder_lacks_is_refused(checkpoint, layer):
    with pytest.raises(UserError, match=f"^--layer {layer} must be from 0 to 2 or from -2 to -1"):
        load_encoder(EncoderArguments(model_name_or_path=checkpoint, layer=layer), Accelerator(cpu=True))
