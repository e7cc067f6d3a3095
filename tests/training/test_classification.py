"""Classification as a task: labels, loss and learning rates of real runs."""

import gc

import pytest
import torch

from mae.data.normalization import normalize
from mae.evaluation.accuracy import AccuracyEvaluator
from mae.training.classification import Classification
from modeling_mae import MAEForImageClassification
from tests.support.classification import classify
from tests.support.runs import metrics


def test_mixed_labels_are_shares_of_pixels_and_the_loss_their_cross_entropy(labelled_flags, tmp_path, monkeypatch):
    """Soft labels: a mixture of two images' in the share of pixels, smoothed; and the loss is their cross-entropy."""
    seen = []
    forward = MAEForImageClassification.forward

    def watch(self, pixel_values=None, labels=None, **kwargs):
        outputs = forward(self, pixel_values, labels, **kwargs)
        if self.training:
            seen.append((labels, outputs))
        return outputs

    monkeypatch.setattr(MAEForImageClassification, "forward", watch)
    classify(tmp_path / "run", *labelled_flags, "--augmentation", "none", "--num_train_epochs", 1)
    assert len(seen) == 12
    mixed = 0
    for labels, outputs in seen:
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(8))
        raw = (labels - 0.1 / 9) / 0.9  # one or two classes a row
        assert ((raw > 1e-4).sum(dim=1) <= 2).all() and (raw > -1e-6).all()
        mixed += bool((raw.amax(dim=1) < 0.999).any())
        expected = -(labels * outputs.logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(outputs.loss, expected)
    assert mixed >= 8


def test_label_smoothing_is_that_of_torch(labelled_flags, tmp_path, monkeypatch):
    losses = []
    compute_loss = Classification.loss

    def compare(self, forward, batch):
        loss = compute_loss(self, forward, batch)
        with torch.no_grad():
            logits = self.model(normalize(batch.pixel_values, self.model.config)).logits
        labels = torch.as_tensor(batch.labels)
        losses.append((loss.item(), torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item()))
        return loss

    monkeypatch.setattr(Classification, "loss", compare)
    more = ["--mixup_alpha", 0, "--cutmix_alpha", 0, "--drop_path_rate", 0, "--augmentation", "crop"]
    classify(tmp_path / "run", *labelled_flags, *more)
    assert len(losses) == 12
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_layer_decay_reaches_the_optimizer(labelled_flags, tmp_path, monkeypatch):
    rates = {}
    evaluate = AccuracyEvaluator.__call__

    def look(self, model, context):
        names = {parameter: name for name, parameter in model.named_parameters()}
        for optimizer in [each for each in gc.get_objects() if issubclass(type(each), torch.optim.AdamW)]:
            for group in optimizer.param_groups:
                rates.update({names[each]: group["lr"] for each in group["params"] if each in names})
        return evaluate(self, model, context)

    monkeypatch.setattr(AccuracyEvaluator, "__call__", look)
    classify(tmp_path / "run", *labelled_flags, "--learning_rate", 0.01, "--warmup_epochs", 0)
    last = metrics(tmp_path / "run")[-1]["learning_rate"]
    assert rates["head.weight"] == last and rates["fc_norm.bias"] == last
    for name, power in (("mae.blocks.2.mlp.fc1.weight", 1), ("mae.blocks.0.norm1.bias", 3), ("mae.pos_embed", 4)):
        assert rates[name] == pytest.approx(last * 0.65**power)
