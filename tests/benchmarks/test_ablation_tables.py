"""Tables of ablations against numbers by hand."""

import pytest

from benchmarks.ablation_tables import cell, score_table, seconds_table


def line(seed, protocol, labels, score, seconds):
    owner = f"nuclei/{'default' if protocol == 'finetune' else protocol}/seed{seed}/{protocol}_{labels}"
    return {"run": owner, "dataset": "nuclei", "seed": seed, "protocol": protocol, "labels": labels} | {
        "iou_1": score,
        "seconds": seconds,
    }


RESULTS = [
    line(0, "finetune", "16", 0.5, 10.0),
    line(1, "finetune", "16", 0.7, 30.0),
    line(0, "finetune", "all", 0.8, 50.0),
    line(0, "scratch", "16", 0.25, 20.0),
]


@pytest.mark.parametrize("values, expected", [([], ""), ([0.5], "50.0"), ([0.5, 0.7], "60.0 ± 14.1")])
def test_cell_is_mean_and_sample_deviation(values, expected):
    assert cell(values) == expected


def test_scores_are_averaged_over_seeds():
    rows = [row.strip("| ").split(" | ") for row in score_table("pretraining", "nuclei", RESULTS).splitlines()]
    assert rows[0] == ["pre-training", "protocol", "16 labels", "64 labels", "all labels"]
    assert rows[2][:3] == ["default", "finetune", "60.0 ± 14.1"] and rows[2][-1] == "80.0"
    assert rows[3][:3] == ["none", "scratch", "25.0"]


def test_times_are_medians():
    rows = [row.strip("| ").split(" | ") for row in seconds_table("nuclei", RESULTS).splitlines()]
    assert rows[2] == ["finetune", "16", "20 s", "2"]
