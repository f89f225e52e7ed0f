"""One table of the arms of a sweep.

forms.py writes it as Markdown, CSV, LaTeX and HTML, all from the same rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mirai_bench.results.cost import one_off_notes, with_one_off
from mirai_bench.results.frame import Results, is_distance, refuse_mixed_protocols
from mirai_bench.results.looks import PILOT, Decisions, decide, tested_together
from mirai_bench.results.noise import deviation_of, noise_floor, read_panel
from mirai_bench.results.notes import notes_below
from mirai_bench.results.paper import PaperValues, paper_values, papers_name
from mirai_bench.results.row import Row
from mirai_bench.results.stats import (
    Values,
    paired,
    ratio,
    t_interval,
)
from mirai_bench.results.teachers import TEACHER, taught_by_judge
from mirai_bench.utils.errors import UserError

MISSING = "—"


@dataclass(frozen=True)
class Table:
    """The arms of a sweep at one evaluation."""

    title: str
    baseline: str
    metrics: list[str]
    """Names of the metrics, the primary one first."""
    rows: list[Row]
    notes: list[str]
    floor: float | None
    """Difference in the primary metric that noise alone exceeds in 5 % of cases, by the profile's noise \
panel, if it has one for this recipe. Of a Fréchet distance that of the logarithms."""
    timing: bool
    """Whether seconds are shown.

    Without them the table of a sweep is the same however often it was interrupted.
    """

    @property
    def is_decided(self) -> bool:
        """Tells whether verdicts are given, and not only corrected p-values."""
        return any(row.verdict not in (None, TEACHER) for row in self.rows)


def build_table(
    results: Results, *, metric: str | None = None, epoch: float | None = None, timing: bool = True
) -> Table:
    """Returns the table at the last evaluation that any arm has reached, or at the one of `epoch`.

    Raises UserError for mixed protocols, or if there is no such evaluation.
    """
    refuse_mixed_protocols(results)
    cost_notes = one_off_notes(results, timing=timing)
    results = with_one_off(results)
    step, at = _evaluation(results, epoch)
    first = metric or results.primary
    metrics = [first, *(name for name in results.metrics if name != first)]
    paper = paper_values(results, at)
    rows = [_row(results, step, arm, metrics, paper) for arm in results.arms]
    _correct(results, rows, metrics)
    decisions = decide(results, step, first) if first == results.primary else None
    if decisions is not None:
        rows = [_decided(row, decisions, first) for row in rows]
    barred = taught_by_judge(results, first)
    rows = [replace(row, verdict=TEACHER) if row.arm in barred else row for row in rows]
    floor = _noise_floor(results, rows, first)
    notes = [*notes_below(results, step, at, rows, first, timing, decisions, floor), *cost_notes]
    title = f"{results.axis}: {results.question}"
    return Table(title, results.baseline, metrics, rows, notes, floor, timing)


def _evaluation(results: Results, epoch: float | None) -> tuple[int, float]:
    """Returns (step, epoch) of the last evaluation, or of the one at `epoch`."""
    known = sorted({(record["step"], record["epoch"]) for record in results.records})
    if not known:
        raise UserError(f"{results.axis} ({results.profile}) has no evaluation yet: run its sweep first")
    if epoch is None:
        return known[-1]
    # A percent of tolerance, because an evaluation lies at a whole step, next to the epoch asked for.
    nearest = min(known, key=lambda pair: abs(pair[1] - epoch))
    if abs(nearest[1] - epoch) > 0.01 * epoch:
        epochs = ", ".join(f"{each:g}" for _, each in known)
        raise UserError(f"no evaluation at epoch {epoch:g}: there are {epochs}")
    return nearest


def _row(results: Results, step: int, arm: str, metrics: list[str], paper: PaperValues) -> Row:
    def compared(name: str) -> tuple[Values, Values]:
        """Returns the arm's values and the baseline's."""
        return results.by_seed(arm, step, name), results.by_seed(results.baseline, step, name)

    # 1. Each metric: the arm's mean, its difference to the baseline, and what the paper has of it.
    values = {}
    differences = {}
    known = {}
    for name in metrics:
        ours, theirs = compared(name)
        values[name] = t_interval(ours.values())
        if arm != results.baseline:
            differences[name] = paired(ours, theirs, in_log=is_distance(name))
        if (arm, papers_name(name)) in paper:
            known[name] = paper[arm, papers_name(name)]
    # 2. The number of seeds, and the costs in units of the baseline's.
    primary = values[metrics[0]]
    n = primary.n if primary else 0
    flops = ratio(*compared("train_flops"))
    seconds = ratio(*compared("train_seconds"))
    return Row(arm, len(results.seeds(arm)), n, values, differences, None, known, flops, seconds)


def _correct(results: Results, rows: list[Row], metrics: list[str]) -> None:
    """Applies Holm's correction over the arms of each family to the p-values of each metric.

    An arm that a metric cannot judge is not tested by it, nor one of no family where looks are planned.
    """
    # One family of tests per metric, because each metric is a question of its own.
    for name in metrics:
        tests = {row.arm: row.differences.get(name) for row in rows}
        corrected = dict.fromkeys(tests, math.nan)
        for family in tested_together(results, name):
            own = [tests[arm] for arm in family.arms]
            corrected |= family.corrected([test.p if test else math.nan for test in own])
        for row in rows:
            test = tests[row.arm]
            if test:
                row.differences[name] = replace(test, p=corrected[row.arm])


def _decided(row: Row, decisions: Decisions, metric: str) -> Row:
    """Returns the row with the verdict of the looks, and the difference at the last of them."""
    verdict = decisions.verdicts.get(row.arm)
    differences = dict(row.differences)
    found = differences.get(metric)
    if found is not None and (verdict is None or verdict.word == PILOT):
        differences[metric] = replace(found, p=math.nan)  # nothing is tested
    if verdict is None:
        return replace(row, differences=differences)
    word = verdict.word
    if verdict.look:
        differences[metric] = verdict.estimate
    if 0 < verdict.look < decisions.reached:
        word += f" (look {verdict.look})"
    return replace(row, differences=differences, verdict=word)


def _noise_floor(results: Results, rows: list[Row], metric: str) -> float | None:
    panel = read_panel(results.profile)
    deviation = deviation_of(panel, results.records[0]["run"]["config"], metric)
    n = min((row.n for row in rows if row.n), default=0)
    return noise_floor(deviation, n) if deviation is not None and n else None
