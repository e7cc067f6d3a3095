"""Measures of the features of an encoder that need no labels: how many directions they use, and how evenly."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mae.data.sources import Source
from mae.data.subsets import take_rows
from mae.evaluation.evaluator import Evaluation, EvaluationContext
from mae.evaluation.features import encode_images
from mae.evaluation.inference import EvaluationBatches
from mae.evaluation.sampled import gather_sharded_weights
from mae.utils.hashing import permutation
from modeling_mae import MAEForPreTraining


MAX_IMAGES = 2_000
# Ranks of the eigenvalues that the power law is fitted to, as in the code of its authors.
_FIRST_RANK, _LAST_RANK = 4, 100


def rankme(features: Tensor) -> float:
    """
    The effective rank of features `(N, D)`, between 1 and min(N, D): RankMe (Garrido et al. 2023, arXiv 2210.02885,
    Equation 1).

    It is exp(entropy) of the singular values divided by their sum. The features are not centred.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + 1e-7
    return math.exp(-(shares * shares.log()).sum().item())


def alpha_req(features: Tensor) -> float:
    """
    The exponent of the power law that the eigenvalues of the covariance of features `(N, D)` follow: alpha-ReQ
    (Agrawal et al. 2022, NeurIPS). Features near 1 are the best in the paper; larger ones use few directions.

    It is the slope of log eigenvalue over log rank, by least squares with weights 1 / rank, over the ranks 4 to 100
    (fewer if there are fewer), as in the authors' code. NaN with fewer than two such eigenvalues.
    """
    centred = features.double() - features.double().mean(dim=0)
    values = torch.linalg.svdvals(centred).square()
    values = values[values > 1e-12 * values[0]][: min(_LAST_RANK, len(features) - 1)].numpy()
    ranks = np.arange(_FIRST_RANK, len(values) + 1)
    if len(ranks) < 2:
        return math.nan
    # numpy multiplies the errors by the weights before it squares them.
    slope, _ = np.polyfit(np.log(ranks), np.log(values[_FIRST_RANK - 1 :]), 1, w=ranks**-0.5)
    return -float(slope)


@dataclass(frozen=True)
class SpectrumEvaluator:
    """
    RankMe and alpha-ReQ of the mean patch tokens of images, without labels.

    Args:
        source: The images.
        every_epochs: Epochs between two evaluations.
        batch_size: Images of one forward pass of one rank.
        num_workers: DataLoader workers of each rank.
        retry_minutes: Minutes for which data that cannot be read is retried.
    """

    source: Source
    every_epochs: float
    batch_size: int
    num_workers: int = 0
    retry_minutes: float = 0

    every_steps: ClassVar[None] = None

    def __call__(self, model: MAEForPreTraining, context: EvaluationContext) -> Evaluation | None:
        if isinstance(model, FSDPModule):
            gather_sharded_weights(model)
        images = EvaluationBatches(self.source, model.config, self.batch_size, self.num_workers, self.retry_minutes)
        outputs = encode_images(model.mae, images, "validation", "mean", should_stop=context.should_stop)
        if outputs is None:
            return None
        features = outputs.outputs["features"].cpu()
        values = {"eval_rankme": rankme(features), "eval_alpha_req": alpha_req(features)}
        return Evaluation({name: value for name, value in values.items() if math.isfinite(value)})


def sample_images(source: Source, seed: int) -> Source:
    """Up to 2,000 images of a source, drawn from a seed."""
    return take_rows(source, np.sort(permutation(len(source), seed, "spectrum")[:MAX_IMAGES]))
