"""One table of the arms of a sweep.

writers.py writes it as Markdown, CSV, LaTeX and HTML, all from the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mirai_bench.results.frame import Results, refuse_mixed_protocols
from mirai_bench.results.paper import Paper, PaperValues, is_papers, paper_size, paper_values, papers_name
from mirai_bench.results.stats import Estimate, Values, fisher_exact, holm, paired, ratio, t_interval
from mirai_bench.utils.errors import UserError

MISSING = "—"
SOLVED = "solved"  # the metric of planted data that is 1 or 0
MOST_LISTED = 12  # unfinished cells that a note names


@dataclass(frozen=True)
class Row:
    """One arm."""

    arm: str
    planned: int
    """Number of seeds of the sweep."""
    n: int
    """Number of seeds with a value of the primary metric."""
    values: Mapping[str, Estimate | None]
    """For each metric its mean over the seeds."""
    differences: dict[str, Estimate | None]
    """For each metric its difference to the baseline, paired by seed, with p corrected over the \
arms. Empty for the baseline itself."""
    paper: Mapping[str, Paper]
    """For some metrics the paper's value."""
    flops: Estimate | None
    """Training FLOPs so far over the baseline's. None if the cost of an encoder is not known."""
    seconds: Estimate | None
    """Training time so far over that of the baseline with the same seed."""


@dataclass(frozen=True)
class Table:
    """The arms of a sweep at one evaluation."""

    title: str
    baseline: str
    metrics: list[str]
    """Names of the metrics, the primary one first."""
    rows: list[Row]
    notes: list[str]
    timing: bool
    """Whether seconds are shown.

    Without them the table of a sweep is the same however often it was interrupted.
    """


def build_table(
    results: Results, *, metric: str | None = None, epoch: float | None = None, timing: bool = True
) -> Table:
    """Returns the table at the last evaluation that any arm has reached, or at the one of `epoch`.

    Raises UserError for mixed protocols, or if there is no such evaluation.
    """
    refuse_mixed_protocols(results)
    step, at = _evaluation(results, epoch)
    first = metric or results.primary
    metrics = [first, *(name for name in results.metrics if name != first)]
    paper = paper_values(results, at)
    rows = [_row(results, step, arm, metrics, paper) for arm in results.arms]
    _correct(rows, metrics)
    notes = _notes(results, step, at, rows, first, timing)
    return Table(f"{results.axis}: {results.question}", results.baseline, metrics, rows, notes, timing)


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
            differences[name] = paired(ours, theirs)
        if (arm, papers_name(name)) in paper:
            known[name] = paper[arm, papers_name(name)]
    # 2. The number of seeds, and the costs in units of the baseline's.
    primary = values[metrics[0]]
    n = primary.n if primary else 0
    flops = ratio(*compared("train_flops"))
    seconds = ratio(*compared("train_seconds"))
    return Row(arm, len(results.seeds(arm)), n, values, differences, known, flops, seconds)


def _correct(rows: list[Row], metrics: list[str]) -> None:
    """Applies Holm's correction over the arms to the p-values of each metric."""
    # One family of tests per metric, because each metric is a question of its own.
    for name in metrics:
        tests = [row.differences.get(name) for row in rows]
        corrected = holm([test.p if test else math.nan for test in tests])
        for row, test, p in zip(rows, tests, corrected, strict=True):
            if test:
                row.differences[name] = replace(test, p=p)


def _solved(results: Results, step: int, arms: list[str]) -> str:
    """Returns how many runs of each arm have solved a planted task, with an exact test.

    A run solves it or stays at chance, so a t-test of the mean would say little.
    """
    # 1. The counts.
    counts = {}
    for arm in arms:
        values = results.by_seed(arm, step, SOLVED).values()
        counts[arm] = (sum(value == 1 for value in values), len(values))
    # 2. Each arm against the baseline, corrected over the arms.
    baseline = counts[results.baseline]
    others = [arm for arm in arms if arm != results.baseline]
    p_values = holm([fisher_exact(*counts[arm], *baseline) for arm in others])
    texts = [f"{results.baseline} {baseline[0]} of {baseline[1]}"]
    for arm, p in zip(others, p_values, strict=True):
        texts.append(f"{arm} {counts[arm][0]} of {counts[arm][1]} (p {p:.3f})")
    return f"Runs that solved the task: {', '.join(texts)}. p: Fisher's exact test, Holm-corrected."


def _notes(
    results: Results, step: int, epoch: float, rows: list[Row], metric: str, timing: bool
) -> list[str]:
    """Returns the sentences below the table."""
    # 1. How to read the numbers, and what they were measured with.
    run = results.records[0]["run"]  # the protocol is that of all records
    protocol = run["protocol"]
    changes = [row.differences.get(metric) for row in rows]
    num_tests = sum(change is not None and not math.isnan(change.p) for change in changes)
    arms = "1 arm" if num_tests == 1 else f"{num_tests} arms"
    costs = "FLOPs × and time ×" if timing else "FLOPs ×"
    notes = [
        f"Mean ± half width of the 95 % t-interval over n seeds, at epoch {epoch:g}. Δ: arm minus "
        f"{results.baseline}, paired by seed, with its 95 % t-interval; p: paired t-test, "
        f"Holm-corrected over {arms}. ↓ lower is better, ↑ higher. {costs}: training cost up to "
        "there, relative to the baseline.",
        f"Profile {results.profile}. Protocol {protocol['name']} ({run['protocol_digest']}): "
        f"{protocol['num_samples']:,} samples, {protocol['class_rule']} classes, CFG "
        f"{protocol['cfg_scale']:g}, {protocol['weights']} weights, extractor "
        f"{run['extractor']['name']}, reference {run['reference']['name']}.",
    ]
    # 2. The paper's column.
    if any(row.paper for row in rows):
        other = "; another data set, model and metric: compare the order of arms, not the values"
        notes.append(
            f"Paper: as published for LlamaGen-{paper_size(results)} on ImageNet 256×256 @epochs, "
            f"and how it was read (reports/data/README.md){'' if is_papers(results) else other}."
        )
    # 3. What is still missing.
    if SOLVED in results.metrics:
        notes.append(_solved(results, step, [row.arm for row in rows]))
    unfinished = [cell for cell in results.cells if cell["status"] != "done"]
    if unfinished:
        names = [f"{cell['arm']} seed {cell['seed']} ({cell['status']})" for cell in unfinished]
        listed = ", ".join(names[:MOST_LISTED])
        if len(names) > MOST_LISTED:
            listed += f", and {len(names) - MOST_LISTED} more"
        notes.append(f"Not finished: {listed}. {MISSING}: no value.")
    return notes
