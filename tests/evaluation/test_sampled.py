"""Features of a sample of labelled images are computed once for the evaluations of a step."""

from mae.evaluation.evaluator import EvaluationContext
from mae.evaluation.sampled import LabelledSample
from tests.support.models import tiny_model
from tests.support.samples import BrokenSource, encode, picture


class Classes:
    names = ["a", "b"]

    def __init__(self, count):
        import numpy as np

        self.values = np.arange(count) % 2


def sample_of(count):
    source = BrokenSource([encode(picture("RGB", (32, 33 + number)), "PNG") for number in range(count)])
    return source, Classes(count)


def test_features_are_those_of_a_step(tmp_path):
    sample = LabelledSample(sample_of(7), sample_of(4), batch_size=3)
    model = tiny_model()
    first = sample.encode(model, EvaluationContext(3, 1.0, tmp_path))
    assert first.features.shape == (7, 32) and first.queries.shape == (4, 32) and first.num_classes == 2
    assert first.classes.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert sample.encode(model, EvaluationContext(3, 1.0, tmp_path)) is first
    assert sample.encode(model, EvaluationContext(4, 1.0, tmp_path)) is not first


def test_stop_leaves_no_features(tmp_path):
    sample = LabelledSample(sample_of(7), sample_of(4), batch_size=3)
    assert sample.encode(tiny_model(), EvaluationContext(3, 1.0, tmp_path, lambda: True)) is None
    assert sample.encode(tiny_model(), EvaluationContext(3, 1.0, tmp_path)) is not None
