"""Accuracy of a linear classifier on the features of an encoder, while it is pre-trained."""

from dataclasses import dataclass
from typing import ClassVar

from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.logistic import fit_logistic
from mae.evaluation.sampled import LabelledSample
from mae.utils.distributed import is_main_process
from modeling_mae import MAEForPreTraining


# The features of 10,000 images are separable sooner or later: more steps cost time, and change little.
_MAX_STEPS = 200


@dataclass(frozen=True)
class ProbeEvaluator:
    """
    The accuracy on validation images of a logistic regression on the cls tokens of training images. It starts from
    zero at each evaluation, and sees features alone: the trained model, and its losses, are those of a run without it.

    Args:
        sample: The images.
        every_epochs: Epochs between two evaluations.
    """

    sample: LabelledSample
    every_epochs: float

    every_steps: ClassVar[None] = None

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        found = self.sample.encode(model, context)
        if found is None:
            return None
        if not is_main_process():  # the values of rank 0 are logged
            return Evaluation()
        score = fit_logistic(found.features.cpu(), found.classes.cpu(), found.num_classes, max_iter=_MAX_STEPS)
        hits = score(found.queries.cpu()).argmax(dim=1) == found.query_classes.cpu()
        return Evaluation({"eval_probe_accuracy": hits.double().mean().item()})
