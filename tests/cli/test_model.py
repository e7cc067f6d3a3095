"""The model that flags name."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mae.arguments.model import FeatureArguments
from mae.arguments.recipes import ClassificationFlags, PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.cli.model import (
    build_classifier,
    build_model,
    choose_statistics,
    find_num_channels,
    load_encoder,
    read_checkpoint,
)
from mae.data.folders import open_folder
from mae.data.labels import Labels
from mae.utils.errors import UserError
from tests.support.models import TINY, tiny_model


SMALL = ",".join(f"{name}={value}" for name, value in TINY.items())
LABELS = Labels(np.array([0, 1, 2]), ["a", "b", "c"])


def recipe(**values):
    return PreTrainingRecipe(**{"config_overrides": SMALL} | values)


def test_seed_decides_the_weights_of_a_model_from_scratch():
    first, again, other = (build_model(recipe(seed=seed), None)[0] for seed in (1, 1, 2))
    names = first.state_dict()
    assert all(torch.equal(names[name], again.state_dict()[name]) for name in names)
    assert not torch.equal(names["mae.cls_token"], other.state_dict()["mae.cls_token"])


def test_flags_set_the_fields_of_the_configuration():
    flags = {"image_size": [16, 48], "patch_size": [8], "mask_ratio": 0.5, "norm_pix_loss": True}
    model, report = build_model(recipe(**flags, image_mean=["0.5"], image_std=["0.1", "0.2", "0.3"]), None)
    config = model.config
    assert report is None and config.hidden_size == TINY["hidden_size"]
    assert (tuple(config.image_size), config.patch_size, config.mask_ratio) == ((16, 48), 8, 0.5)
    assert (
        config.norm_pix_loss is True and config.image_mean == [0.5] * 3 and list(config.image_std) == [0.1, 0.2, 0.3]
    )


def test_checkpoint_gives_weights_and_sizes(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    flags = PreTrainingRecipe(model_name_or_path=str(tmp_path))
    found, report = build_model(flags, read_checkpoint(flags))
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert report is not None and found.config.hidden_size == TINY["hidden_size"]
    with pytest.raises(UserError, match="hidden_size"):
        build_model(PreTrainingRecipe(model_name_or_path=str(tmp_path), model_size="base"), read_checkpoint(flags))


def test_configuration_of_another_model_is_read_or_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"} | TINY | {"hidden_size": 48}))
    model, _ = build_model(PreTrainingRecipe(config_name=str(tmp_path)), None)
    assert model.config.hidden_size == 48
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="--config_name .* bert"):
        build_model(PreTrainingRecipe(config_name=str(tmp_path)), None)
    with pytest.raises(UserError, match="--config_name .* cannot be read"):
        build_model(PreTrainingRecipe(config_name=str(tmp_path / "missing")), None)


@pytest.mark.parametrize(
    "overrides, message",
    [("hidden_size=30", "hidden_size"), ("patch_size=7", "patch_size"), ("mask_ratio=2", "mask_ratio")],
)
def test_impossible_model_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as found:
        build_model(recipe(config_overrides=f"{SMALL},{overrides}"), None)
    assert "\n" not in str(found.value)


def test_channels_are_known_before_the_model_is_built(tmp_path):
    tiny_model(num_channels=5, image_mean=0.5, image_std=0.5).save_pretrained(tmp_path)
    flags = PreTrainingRecipe(model_name_or_path=str(tmp_path))
    assert find_num_channels(flags, read_checkpoint(flags)) == 5
    assert find_num_channels(recipe(config_overrides="num_channels=4"), None) == 4
    assert find_num_channels(recipe(), None) == 3


def test_classifier_follows_labels_and_protocol(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    weights = read_checkpoint(PreTrainingRecipe(model_name_or_path=str(tmp_path)))
    common = {"model_name_or_path": str(tmp_path)}
    tuned, _, resolved = build_classifier(ClassificationFlags(**common), weights, LABELS)
    assert tuned.config.id2label == {0: "a", 1: "b", 2: "c"} and tuned.config.pooling == "mean"
    assert resolved.layer_decay == 0.65 and all(p.requires_grad for p in tuned.mae.blocks.parameters())
    assert torch.equal(tuned.mae.cls_token, model.mae.cls_token)
    probe, _, resolved = build_classifier(ClassificationFlags(**common, protocol="linear"), weights, LABELS)
    assert probe.config.pooling == "cls" and probe.config.head_batch_norm and resolved.learning_rate == 6.4
    assert not any(parameter.requires_grad for parameter in probe.mae.parameters())
    assert any(parameter.requires_grad for parameter in probe.parameters())


def test_classifier_without_a_model_is_refused_with_both_ways():
    with pytest.raises(UserError, match="--model_name_or_path is missing.*--from_scratch"):
        build_classifier(ClassificationFlags(), None, LABELS)


def test_label_smoothing_of_several_labels_is_refused():
    several = Labels(np.eye(3, dtype=np.uint8), ["a", "b", "c"])
    flags = ClassificationFlags(from_scratch=True, config_overrides=SMALL, label_smoothing_factor=0.1)
    with pytest.raises(UserError, match="--label_smoothing_factor 0.1"):
        build_classifier(flags, None, several)


def test_statistics_are_measured_or_required(image_folder):
    source = open_folder(str(image_folder), "--train_dir")
    flags = recipe(image_mean=["auto"], lanes=4)
    model, _ = build_model(flags, None)
    note = choose_statistics(model, source, flags, RunArguments())
    assert "Measured on 60 images" in note and len(model.config.image_mean) == 3
    assert all(0 < value < 1 for value in (*model.config.image_mean, *model.config.image_std))
    flags = recipe(config_overrides=f"{SMALL},num_channels=4")
    with pytest.raises(UserError, match="--image_mean auto"):
        choose_statistics(build_model(flags, None)[0], source, flags, RunArguments())


@pytest.mark.parametrize("layer, is_one", [(0, True), (2, True), (-2, True), (3, False), (-3, False)])
def test_layer_must_be_one_of_the_encoder(layer, is_one, tmp_path):
    tiny_model(pooling="mean").save_pretrained(tmp_path)
    arguments = FeatureArguments(model_name_or_path=str(tmp_path), layer=layer)
    if is_one:
        encoder, _ = load_encoder(arguments, Accelerator(cpu=True))
        assert not encoder.training and arguments.pooling == "mean"  # the model's own
    else:
        with pytest.raises(UserError, match=f"--layer {layer} must be from 0 to 2"):
            load_encoder(arguments, Accelerator(cpu=True))
