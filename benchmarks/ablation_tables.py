"""Tables of the results of benchmarks/ablations.py."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.experiments import DATASETS, runs_of
from benchmarks.timing import table


Result = Mapping[str, Any]


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds, in percent: "56.4 ± 0.7". One value has no deviation."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def score_table(study: str, dataset: str, results: Iterable[Result]) -> str:
    """
    A table in Markdown of one study: a row for each value and protocol, a column for each number of labelled images.
    A cell is the mean and the standard deviation of the score over the seeds that are done.
    """
    score, labels = DATASETS[dataset].score, list(DATASETS[dataset].labels)
    by_run = {result["run"]: result for result in results}
    seeds = sorted({result["seed"] for result in by_run.values()})
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs_of(study, dataset, seeds):
        if "labels" in run.facts and run.name in by_run:
            key = run.facts["pretraining"], run.facts["protocol"]
            value = by_run[run.name][score]
            cells.setdefault(key, {}).setdefault(run.facts["labels"], []).append(value)
    rows = [[*key, *(cell(row.get(count, [])) for count in labels)] for key, row in sorted(cells.items())]
    return table(["pre-training", "protocol", *(f"{count} labels" for count in labels)], rows)


def seconds_table(dataset: str, results: Iterable[Result]) -> str:
    """Median seconds of the runs of a dataset, by protocol and number of labelled images."""
    times: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result["dataset"] == dataset:
            times.setdefault((result["protocol"], result.get("labels", "")), []).append(result["seconds"])
    rows = [[*key, f"{statistics.median(values):.0f} s", str(len(values))] for key, values in sorted(times.items())]
    return table(["run", "labels", "median time", "runs"], rows)
