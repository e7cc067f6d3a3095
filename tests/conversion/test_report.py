"""Reports of loading."""

import pytest
import torch

from mae.conversion.loading import make_plan
from mae.conversion.report import fold_blocks
from mae.conversion.weights import Weights
from mae.utils.errors import UserError
from tests.support.models import make_model_of_kind


def test_names_are_folded_and_printable():
    assert fold_blocks(["a.0.b", "a.1.b", "a.2.b", "a.7.b", "a.3.c", "d"]) == ["a.{0-2,7}.b", "a.3.c", "d"]
    tensors = {**make_model_of_kind("encoder").state_dict(), "evil\nerror: all good": torch.zeros(1)}
    tensors |= {f"blocks.{index}.norm1.weight": torch.zeros(24) for index in range(900)}
    with pytest.raises(UserError) as error:
        make_plan(Weights("it", tensors), num_attention_heads=2)
    assert "\n" not in str(error.value) and "evil" in str(error.value) and len(str(error.value)) < 2000
