"""Reports of loading."""

import pytest
import torch

from mae.conversion.layouts import TIMM, VIT_MAE
from mae.conversion.loading import make_plan
from mae.conversion.report import LoadReport, count_by_part, describe_mapping, fold_blocks
from mae.conversion.weights import Weights
from mae.utils.errors import UserError
from tests.support.checkpoints import make_model_of_kind


def test_blocks_are_folded_into_ranges():
    assert fold_blocks(["a.0.b", "a.1.b", "a.2.b", "a.7.b", "a.3.c", "d"]) == ["a.{0-2,7}.b", "a.3.c", "d"]


def test_error_about_many_tensors_is_one_short_printable_line():
    tensors = {**make_model_of_kind("encoder").state_dict(), "evil\nerror: all good": torch.zeros(1)}
    tensors |= {f"blocks.{index}.norm1.weight": torch.zeros(24) for index in range(900)}
    with pytest.raises(UserError) as error:
        make_plan(Weights("it", tensors), num_attention_heads=2)
    assert "\n" not in str(error.value) and "evil" in str(error.value) and len(str(error.value)) < 2000


def test_tensors_are_counted_by_part():
    names = ["mae.norm.weight", "mae.norm.bias", "decoder.pred.weight", "head.weight"]
    assert count_by_part(names) == ["mae.norm (2 tensors)", "decoder.pred (1 tensor)", "head (1 tensor)"]
    decoder = ["decoder.mask_token", "decoder.pred.weight"]  # all of it
    assert count_by_part(decoder) == ["decoder (2 tensors)"]


def test_report_leaves_out_empty_lines():
    report = LoadReport("it", "timm", 30, "encoder", assumed=["image_size=224"], new=["head.weight"])
    assert str(report).splitlines() == [
        "it: timm layout, 30 tensors, encoder",
        "  assumed: image_size=224",
        "  newly initialised: head (1 tensor)",
    ]


def test_mapping_counts_all_blocks_together():
    names = [f"mae.blocks.{index}.attn.qkv.{kind}" for index in range(3) for kind in ("weight", "bias")]
    names += ["decoder.mask_token", "head.weight"]
    assert describe_mapping(names, ["head.weight"], VIT_MAE, TIMM) == [
        "vit.encoder.layer.*.attention.attention.{query,key,value} -> blocks.*.attn.qkv (6)",
        "decoder.mask_token -> (left out) (1)",
        "(new) -> head (1)",
    ]
