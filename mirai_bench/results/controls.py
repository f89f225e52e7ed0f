"""What the controls of the benchmark say, for the foot of every other table (docs/controls.md)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from mirai_bench.results.frame import Results
from mirai_bench.results.stats import fisher_exact, holm
from mirai_bench.utils.assets import shipped

SUMMARY = ("reports", "data", "controls.json")  # written by analysis/false_positives.py
SOLVED = "solved"  # the metric of planted data that is 1 or 0
PLANTED = "staircase"  # data.dataset of the controls themselves


@dataclass(frozen=True)
class Count:
    """How many runs of an arm have solved a planted task."""

    solved: int
    n: int
    p: float
    """Of Fisher's exact test against the baseline, corrected over the arms. It is nan for the baseline."""


def solved_counts(results: Results, step: int) -> dict[str, Count]:
    """Returns the count of each arm, and of the baseline also if the sweep has no such arm.

    A run solves the task or stays at chance, so a t-test of the mean would say little.
    """
    # 1. The numbers.
    numbers = {}
    for arm in dict.fromkeys([*results.arms, results.baseline]):
        values = results.by_seed(arm, step, SOLVED).values()
        numbers[arm] = (sum(value == 1 for value in values), len(values))
    # 2. Each arm against the baseline, corrected over the arms.
    baseline = numbers[results.baseline]
    others = [arm for arm in results.arms if arm != results.baseline]
    p_values = holm([fisher_exact(*numbers[arm], *baseline) for arm in others])
    corrected = dict(zip(others, p_values, strict=True))
    return {arm: Count(*number, corrected.get(arm, math.nan)) for arm, number in numbers.items()}


def dataset_of(results: Results) -> dict[str, Any]:
    """Returns the section `data` of the configuration of the runs."""
    data: dict[str, Any] = results.records[0]["run"]["config"].get("data", {})
    return data


def controls_note(results: Results) -> str | None:
    """Returns a sentence, or None for a control itself, or if the controls were not measured."""
    path = shipped(*SUMMARY)
    if dataset_of(results).get("dataset") == PLANTED or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    positive = found["positive"]
    null = found["null"]
    return (
        f"Controls of this benchmark (docs/controls.md), decided in the same way: planted foresight is seen "
        f"({positive['arm']} solves the task in {positive['solved']} of {positive['n']} runs, "
        f"{positive['baseline']} in {positive['baseline_solved']} of {positive['baseline_n']}, p "
        f"{positive['p']:.3f}), and where there is nothing to foresee {null['found']} of {null['sweeps']} "
        f"tables of {null['n']} seeds find something (exact 95 % interval {100 * null['low']:.1f} to "
        f"{100 * null['high']:.1f} %)."
    )
