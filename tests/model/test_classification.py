"""The classifier: losses, labels, batch norm before the head."""

import pytest
import torch
from torch.nn import functional as F

from configuration_mae import MAEConfig
from modeling_mae import (
    MAEForImageClassification,
    MAEModel,
)
from tests.support.models import assert_close, make_images, tiny_model


@pytest.mark.parametrize(
    "fields, labels, closed_form",
    [
        ({"num_labels": 5}, torch.tensor([1, 4]), lambda x, y: -x.log_softmax(1)[range(2), y].mean()),
        (
            {"num_labels": 3},
            torch.tensor([[0.2, 0.3, 0.5], [0, 0.9, 0.1]]),
            lambda x, y: -(x.log_softmax(1) * y).sum(1).mean(),
        ),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[1, 0, 1], [0, 0, 1]]),
            lambda x, y: -torch.where(y == 1, x.sigmoid(), 1 - x.sigmoid()).log().mean(),
        ),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0]), lambda x, y: ((x[:, 0] - y) ** 2).mean()),
        ({"num_labels": 1}, torch.tensor([[0.5], [-2.0]]), lambda x, y: ((x - y) ** 2).mean()),
        (
            {"num_labels": 3, "problem_type": "regression"},
            torch.tensor([[1.0, 0, 1], [0, -3, 1]]),
            lambda x, y: ((x - y) ** 2).mean(),
        ),
    ],
    ids=["classes", "soft", "multi-label", "regression", "regression-column", "regression-3"],
)
def test_classification_loss_equals_closed_form(fields, labels, closed_form):
    outputs = tiny_model(MAEForImageClassification, **fields)(make_images(), labels=labels)
    assert_close(outputs.loss, closed_form(outputs.logits, labels))


def test_one_hot_labels_equal_classes():
    model = tiny_model(MAEForImageClassification, num_labels=5)
    classes = torch.tensor([3, 0])
    one_hot = F.one_hot(classes, 5).float()
    assert_close(model(make_images(), labels=one_hot).loss, model(make_images(), labels=classes).loss)


@pytest.mark.parametrize(
    "fields, labels, message",
    [
        ({}, torch.tensor([[1], [4]]), r"int64.*\(2,\).*\(2, 1\)"),
        ({}, torch.tensor([1, 2, 3]), r"int64.*\(2,\).*\(3,\)"),
        ({}, torch.rand(2, 4), r"float32.*\(2, 5\).*\(2, 4\)"),
        ({}, torch.tensor([1.0, 2.0]), r"float32.*\(2, 5\).*\(2,\)"),
        ({}, torch.tensor([[1, 0, 0, 0, 1]] * 2), r"multi_label_classification"),
        ({"problem_type": "multi_label_classification"}, torch.tensor([1, 2]), r"\(2, 5\).*\(2,\)"),
        ({"problem_type": "regression"}, torch.rand(2), r"\(2, 5\).*\(2,\)"),
    ],
)
def test_labels_of_the_wrong_shape_are_refused(fields, labels, message):
    model = tiny_model(MAEForImageClassification, num_labels=5, **fields)
    with pytest.raises(ValueError, match=message):
        model(make_images(), labels=labels)


def test_classifier_without_labels_returns_the_pooled_output():
    model = tiny_model(MAEForImageClassification, num_labels=0)
    assert torch.equal(model(make_images()).logits, model.mae(make_images()).pooler_output)


def test_head_batch_norm_normalises_the_pooled_output_without_scale_and_shift():
    model = tiny_model(MAEForImageClassification, head_batch_norm=True, num_labels=5).train()
    assert not list(model.head_norm.parameters())
    images = make_images(batch_size=16)
    logits = model(images).logits
    features = model.mae(images).pooler_output
    centred = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(logits, centred @ model.head.weight.T + model.head.bias)
    torch.testing.assert_close(model.head_norm.running_mean, 0.1 * features.mean(0))


def test_head_batch_norm_statistics_survive_saving(tmp_path):
    model = tiny_model(MAEForImageClassification, head_batch_norm=True, num_labels=5)
    images = make_images(batch_size=16)
    model.train()(images)
    model.eval().save_pretrained(tmp_path)
    loaded, info = MAEForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(images).logits, model(images).logits)
    _, info = MAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_head_batch_norm_that_the_checkpoint_lacks_is_initialised(tmp_path):
    tiny_model(MAEForImageClassification, num_labels=5).save_pretrained(tmp_path)
    loaded = MAEForImageClassification.from_pretrained(tmp_path, head_batch_norm=True)
    assert not loaded.head_norm.running_mean.any() and (loaded.head_norm.running_var == 1).all()
    assert loaded.head_norm.num_batches_tracked == 0


def test_head_of_a_linear_probe_has_the_official_standard_deviation():
    config = MAEConfig.from_size("base", num_hidden_layers=1, num_labels=1000, head_batch_norm=True)
    assert MAEForImageClassification(config).head.weight.std().item() == pytest.approx(0.01, rel=0.01)


def test_encoder_outputs_give_the_same_result_as_images():
    model = tiny_model(MAEForImageClassification, num_labels=5, pooling="mean").eval()
    images = make_images(32, 32)
    labels = torch.tensor([1, 4])
    whole, parts = model(images, labels), model(encoder_outputs=model.mae(images), labels=labels)
    assert torch.equal(whole.logits, parts.logits) and torch.equal(whole.loss, parts.loss)
    for arguments in ({}, {"pixel_values": images, "encoder_outputs": model.mae(images)}):
        with pytest.raises(ValueError, match="pixel_values.*encoder_outputs"):
            model(**arguments)
