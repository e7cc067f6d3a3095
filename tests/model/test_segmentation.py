"""Semantic segmentation: heads, loss and logits against plain torch; checkpoints, pipelines, invalid input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BeitImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from mae import load_checkpoint
from mae.utils.errors import UserError
from modeling_mae import MAEBackbone, MAEForPreTraining, MAEForSemanticSegmentation, MAEModel
from tests.support.models import assert_close, make_images, tiny_config, tiny_model


UPERNET = {"segmentation_head": "upernet", "num_hidden_layers": 4, "segmentation_hidden_size": 16}
HEADS = {"linear": {}, "upernet": UPERNET}


def make_labels(*size, classes=3, batch_size=2):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, classes, (batch_size, *(size or (32, 32))), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return labels


def segmenter(head="linear", **fields):
    return tiny_model(MAEForSemanticSegmentation, **{"num_labels": 3, **HEADS[head], **fields})


# Heads and logits


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (8, 40)])
@pytest.mark.parametrize("head", HEADS)
def test_logits_have_the_size_of_the_images(head, size):
    model = segmenter(head, num_channels=5)
    assert model(make_images(*size, channels=5)).logits.shape == (2, 3, *size)


@pytest.mark.parametrize("training", [False, True])
def test_linear_head_is_a_batch_norm_and_a_linear_layer_for_each_patch(training):
    model = segmenter().train(training)
    images = make_images(32, 48)
    tokens = model.mae(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:].flatten(0, 1)
    norm = nn.BatchNorm1d(32).train(training)
    norm.load_state_dict(model.decode_head.batch_norm.state_dict())
    weight, bias = model.decode_head.classifier.weight[:, :, 0, 0], model.decode_head.classifier.bias
    scores = (norm(tokens) @ weight.T + bias).reshape(2, 4, 6, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(scores, (32, 48), mode="bilinear", align_corners=False)
    assert_close(model(images).logits, expected)


def test_upernet_is_that_of_transformers():
    """The same weights around the backbone; logits and loss, with the auxiliary head at its weight."""
    model = segmenter("upernet")
    config = UperNetConfig(backbone_config=tiny_config(**UPERNET, feature_pyramid=True), hidden_size=16, num_labels=3)
    upernet = UperNetForSemanticSegmentation(config).eval()
    weights = {
        f"backbone.{name}" if name.startswith(("mae.", "pyramid.")) else name: tensor
        for name, tensor in model.state_dict().items()
    }
    upernet.load_state_dict(weights)
    images, labels = make_images(32, 48), make_labels(32, 48)
    actual, expected = (each(images, labels=labels) for each in (model, upernet))
    assert_close(actual.logits, expected.logits)
    assert_close(actual.loss, expected.loss)
    assert not torch.equal(actual.loss, model.loss(actual.logits, labels))  # the auxiliary head counts


def test_upernet_without_an_auxiliary_head_has_the_loss_of_its_logits():
    model = segmenter("upernet", auxiliary_loss_weight=0)
    assert model.auxiliary_head is None
    outputs = model(make_images(), labels=make_labels())
    assert_close(outputs.loss, model.loss(outputs.logits, make_labels()))


def test_width_of_upernet_is_the_encoders_by_default():
    model = segmenter("upernet", segmentation_hidden_size=None)
    assert model.decode_head.classifier.weight.shape == (3, 32, 1, 1)
    assert model.auxiliary_head.classifier.weight.shape == (3, 256, 1, 1)  # transformers' default


@pytest.mark.parametrize("head", HEADS)
def test_uint8_images_are_normalised_with_the_configuration(head):
    model = segmenter(head, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    assert_close(model(images).logits, model((images / 255 - mean) / std).logits)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("head", HEADS)
def test_gradient_reaches_every_parameter(head, pooling):
    """A parameter without one would stop training on several devices."""
    model = segmenter(head, pooling=pooling).train()
    model(make_images(), labels=make_labels()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_hidden_states_and_attentions_are_those_of_the_encoder():
    model = segmenter()
    outputs = model(make_images(), output_hidden_states=True, output_attentions=True)
    expected = model.mae(make_images(), output_hidden_states=True, output_attentions=True)
    for actual, state in zip(outputs.hidden_states, expected.hidden_states):
        assert_close(actual, state)
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    assert model(make_images()).hidden_states is None
    loss, logits = model(make_images(), labels=make_labels(), return_dict=False)
    assert_close(logits, outputs.logits)


def test_layer_ids_and_weight_decay_are_those_of_fine_tuning():
    ids = segmenter("upernet").layer_ids()
    assert ids["mae.pos_embed"] == ids["mae.patch_embed.proj.weight"] == 0 and ids["mae.blocks.3.norm1.bias"] == 4
    assert {ids[name] for name in ids if not name.startswith("mae.")} == {5}
    assert segmenter().no_weight_decay() == {"mae.cls_token", "mae.pos_embed"}


# Loss


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_loss_is_the_weighted_mean_over_labelled_pixels(weights):
    model = segmenter(class_weights=weights)
    labels = make_labels()
    outputs = model(make_images(), labels=labels)
    probabilities = outputs.logits.softmax(1)
    total = count = 0
    for image in range(2):
        for row in range(32):
            for column in range(32):
                label = int(labels[image, row, column])
                if label != 255:
                    weight = 1.0 if weights is None else weights[label]
                    total -= weight * probabilities[image, label, row, column].log()
                    count += weight
    assert_close(outputs.loss, total / count)


def test_ignored_label_can_be_changed():
    labels = make_labels()
    expected = segmenter()(make_images(), labels=labels).loss
    labels[labels == 255] = -1
    assert_close(segmenter(semantic_loss_ignore_index=-1)(make_images(), labels=labels).loss, expected)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("head", HEADS)
def test_batch_without_labelled_pixels_has_no_loss_and_no_gradient(head, weights):
    model = segmenter(head, class_weights=weights).train()
    loss = model(make_images(), labels=torch.full((2, 32, 32), 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_labels_may_have_any_integer_type():
    expected = segmenter()(make_images(), labels=make_labels()).loss
    assert_close(segmenter()(make_images(), labels=make_labels().to(torch.uint8)).loss, expected)


@pytest.mark.parametrize("labels", [torch.zeros(2, 4, 4).long(), torch.zeros(2, 32, 32), torch.zeros(2, 1, 32, 32)])
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(2, 32, 32\)"):
        segmenter()(make_images(), labels=labels)


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"num_labels": 1}, "num_labels=1 must be at least 2"),
        ({"class_weights": [1.0]}, "must hold num_labels=3 numbers"),
        ({"class_weights": [1.0, -1.0, 1.0]}, "none negative"),
        ({"segmentation_head": "upernet", "segmentation_hidden_size": 0}, "positive integer"),
        ({"auxiliary_loss_weight": -1}, "must not be negative"),
        ({"segmentation_head": "unet"}, "segmentation_head"),
        ({"segmentation_head": "upernet"}, "needs 4 feature maps"),  # of 2 blocks
    ],
)
def test_invalid_configuration_is_refused(fields, part):
    with pytest.raises(Exception, match=part):
        MAEForSemanticSegmentation(tiny_config(**{"num_labels": 3, **fields}))


def test_upernet_refuses_a_single_image_in_training_only():
    model = segmenter("upernet")
    model(make_images(batch_size=1))
    with pytest.raises(ValueError, match="at least 2 images"):
        model.train()(make_images(batch_size=1))


# Initialisation and checkpoints


@pytest.mark.parametrize("head", HEADS)
def test_new_heads_are_initialised_as_in_training_from_scratch(head, tmp_path):
    """Loading builds on the meta device, whose tensors hold anything."""
    tiny_model(MAEForPreTraining, num_hidden_layers=4).save_pretrained(tmp_path)
    fields = {"num_labels": 3, **HEADS[head], "num_hidden_layers": 4}
    loaded = MAEForSemanticSegmentation.from_pretrained(tmp_path, **fields)
    for model in (loaded, MAEForSemanticSegmentation(tiny_config(**fields))):
        for name, tensor in model.state_dict().items():
            if name.startswith("mae.") or tensor.ndim == 0:
                continue
            if name.endswith(("running_var", "batch_norm.weight", "up4.1.weight")):
                assert (tensor == 1).all(), name
            elif name.endswith(("running_mean", "batch_norm.bias", "classifier.bias", "up4.1.bias")):
                assert (tensor == 0).all(), name
            elif name.endswith("classifier.weight"):
                assert tensor.std().item() == pytest.approx(0.01, rel=0.3), name
            else:
                assert 0 < tensor.abs().max() < 0.7, name


@pytest.mark.parametrize("head", HEADS)
def test_encoder_of_a_pretraining_checkpoint_is_kept(head, tmp_path):
    source = tiny_model(MAEForPreTraining, num_hidden_layers=4)
    source.save_pretrained(tmp_path)
    fields = {"num_labels": 3, **HEADS[head]}
    fields.pop("num_hidden_layers", None)
    direct, info = MAEForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True, **fields)
    other, report = load_checkpoint(tmp_path, MAEForSemanticSegmentation, **fields)
    assert not info["unexpected_keys"] and set(report.new) == set(info["missing_keys"])
    assert all(name.startswith(("decode_head.", "auxiliary_head.", "pyramid.")) for name in report.new)
    for model in (direct, other):
        for name, tensor in model.mae.state_dict().items():
            assert torch.equal(tensor, source.mae.state_dict()[name]), name


@pytest.mark.parametrize("head", HEADS)
def test_round_trip_keeps_the_logits(head, tmp_path):
    model = segmenter(head, id2label={0: "soil", 1: "leaf", 2: "stone"}, class_weights=[1.0, 2.0, 3.0])
    model.save_pretrained(tmp_path)
    expected = model(make_images(48, 32), labels=make_labels(48, 32))
    for load in (AutoModelForSemanticSegmentation.from_pretrained, lambda path: load_checkpoint(path)[0]):
        loaded = load(tmp_path)
        assert type(loaded) is MAEForSemanticSegmentation and loaded.config.id2label[1] == "leaf"
        outputs = loaded.eval()(make_images(48, 32), labels=make_labels(48, 32))
        assert_close(outputs.logits, expected.logits)
        assert_close(outputs.loss, expected.loss)


def test_file_without_a_configuration_tells_the_head(tmp_path):
    for head in HEADS:
        model = segmenter(head, auxiliary_loss_weight=0)
        model.save_pretrained(tmp_path / head)
        loaded, report = load_checkpoint(tmp_path / head / "model.safetensors", num_attention_heads=4)
        assert loaded.config.segmentation_head == head and not report.new and not report.unused
        assert_close(loaded(make_images()).logits, model(make_images()).logits)


@pytest.mark.parametrize("head", HEADS)
def test_encoder_and_backbone_open_from_a_segmentation_checkpoint(head, tmp_path, capfd):
    model = segmenter(head, pooling="mean")
    model.save_pretrained(tmp_path)
    expected = model.mae(make_images()).last_hidden_state
    encoder = MAEModel.from_pretrained(tmp_path)
    assert_close(encoder(make_images()).last_hidden_state, expected)
    backbone = MAEBackbone.from_pretrained(tmp_path).eval()
    maps = backbone(make_images()).feature_maps
    assert len(maps) == (4 if head == "upernet" else 1)
    assert_close(model.decode_head(maps), model.decode_head(model.pyramid(model.mae.feature_maps(
        make_images(), model.config.out_indices)[1])))  # fmt: skip
    assert "UNEXPECTED" not in capfd.readouterr().err


def test_other_head_or_other_classes_get_a_new_head(tmp_path):
    segmenter("upernet").save_pretrained(tmp_path)
    model, report = load_checkpoint(tmp_path, segmentation_head="linear")
    assert set(report.new) == {name for name in model.state_dict() if name.startswith("decode_head.")}
    _, info = MAEForSemanticSegmentation.from_pretrained(
        tmp_path, segmentation_head="linear", output_loading_info=True, ignore_mismatched_sizes=True
    )
    assert any(name.startswith("decode_head.fpn") for name in info["unexpected_keys"])  # reported
    model, report = load_checkpoint(tmp_path, num_labels=5)
    assert model.config.num_labels == 5 and not any(name.startswith(("mae.", "pyramid.")) for name in report.new)
    with pytest.raises(UserError, match="num_labels=1 must be at least 2"):
        load_checkpoint(tmp_path, num_labels=1)


# Image processors and pipelines


@pytest.mark.parametrize("size", [(32, 64), (32, 32)])
def test_saved_processor_is_a_stock_one_that_makes_masks(size, tmp_path):
    model = segmenter(image_size=size, image_mean=0.4, image_std=0.2)
    model.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, BeitImageProcessor)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_reduce_labels"] is False
    pixels = np.full((50, 70, 3), 102, np.uint8)
    pixels[:, :5] = 255
    pixel_values = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, *size)
    assert_close(pixel_values[..., 0], torch.full((1, 3, 32), 3.0), 0.1)  # nothing is cut off
    assert_close(pixel_values[..., -8:], torch.zeros(1, 3, 32, 8))
    (mask,) = processor.post_process_semantic_segmentation(model(pixel_values), target_sizes=[(50, 70)])
    assert mask.shape == (50, 70)


@pytest.mark.parametrize("head", HEADS)
def test_pipeline_gives_a_mask_for_each_class_found(head, tmp_path):
    model = segmenter(head, id2label={0: "soil", 1: "leaf", 2: "stone"})
    model.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    found = pipeline("image-segmentation", str(tmp_path))(picture)
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt").pixel_values
    scores = F.interpolate(model(pixel_values).logits, (50, 70), mode="bilinear", align_corners=False)[0]
    expected = scores.argmax(0).numpy()
    assert {entry["label"] for entry in found} == {model.config.id2label[label] for label in np.unique(expected)}
    for entry in found:
        mask = expected == ["soil", "leaf", "stone"].index(entry["label"])
        assert (np.asarray(entry["mask"]) == 255 * mask).all()
