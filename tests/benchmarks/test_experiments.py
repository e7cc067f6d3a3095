"""The table of runs: names, starts, and flags that the scripts accept."""

import pytest

from benchmarks.ablations import command
from benchmarks.experiments import DATASETS, STUDIES, runs_of
from mae.arguments.classification import ClassificationFlags
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import ClassificationArguments, PreTrainingArguments
from mae.arguments.segmentation import SegmentationArguments, SegmentationFlags
from mae.cli.parser import parse_arguments


KINDS = {
    "run_mae.py": (PreTrainingRecipe, PreTrainingArguments),
    "run_image_classification.py": (ClassificationFlags, ClassificationArguments),
    "run_semantic_segmentation.py": (SegmentationFlags, SegmentationArguments),
}
CASES = [(study, dataset) for study in STUDIES for dataset in DATASETS]


@pytest.mark.parametrize("study, dataset", CASES)
def test_names_are_unique_and_each_run_follows_its_start(study, dataset):
    seen = set()
    for run in runs_of(study, dataset, [0, 1]):
        assert run.name not in seen and (run.start is None or run.start in seen)
        seen.add(run.name)


@pytest.mark.parametrize("study, dataset", CASES)
def test_scripts_accept_the_flags_of_every_run(study, dataset, tmp_path):
    for run in runs_of(study, dataset, [3]):
        if run.script is not None:
            flags, arguments = parse_arguments(
                *KINDS[run.script], description="", argv=command(run, tmp_path, tmp_path)[2:]
            )
            assert arguments.seed == 3 if hasattr(arguments, "seed") else flags.seed == 3
            assert arguments.output_dir == str(tmp_path / run.name)


@pytest.mark.parametrize("study, dataset", CASES)
def test_compared_runs_differ_in_one_value(study, dataset, tmp_path):
    """The others, above all the length of training and the seed, are equal."""
    flags = [run.flags for run in runs_of(study, dataset, [0]) if run.script == "run_mae.py"]
    default = {**flags[0], "config_overrides": {}}
    for other in flags[1:]:
        names = {name for name in {*default, *other} if default.get(name) != other.get(name)} - {"config_overrides"}
        assert len(names) <= 1
