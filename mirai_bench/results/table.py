"""Records → one table of arms, written as Markdown, CSV, LaTeX or HTML. All four are made from the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mirai_bench.results.frame import Results, primary_metric, refuse_mixed_protocols
from mirai_bench.results.paper import Paper, is_papers, paper_size, paper_values, papers_name
from mirai_bench.results.stats import Estimate, holm, paired, t_interval
from mirai_bench.utils.errors import UserError

MISSING = "—"


@dataclass(frozen=True)
class Row:
    arm: str
    planned: int
    n: int
    """seeds with a value of the primary metric"""
    values: Mapping[str, Estimate | None]
    differences: Mapping[str, Estimate | None]
    """to the baseline, paired by seed, p corrected over the arms; empty for the baseline itself"""
    paper: Mapping[str, Paper]
    flops: float | None
    """training FLOPs so far over the baseline's"""
    seconds: Estimate | None
    """training time so far over the baseline's of the same seed"""


@dataclass(frozen=True)
class Table:
    title: str
    baseline: str
    metrics: list[str]
    """the primary one first"""
    rows: list[Row]
    notes: list[str]
    timing: bool
    """whether seconds are shown; without them the table of a sweep is the same however often it was interrupted"""


def build_table(
    results: Results, *, metric: str | None = None, epoch: float | None = None, timing: bool = True
) -> Table:
    """The arms at one evaluation: the last that any of them reached, or that of `epoch`. Raises UserError for mixed protocols."""
    refuse_mixed_protocols(results)
    step, at = _evaluation(results, epoch)
    first = metric or primary_metric(results.metrics)
    metrics = [first, *(name for name in results.metrics if name != first)]
    cells = {(record["arm"], record["seed"]): record for record in results.records if record["step"] == step}
    paper = paper_values(results, at)
    rows = [_row(results, arm, metrics, cells, paper) for arm in results.arms]
    for name in metrics:  # Holm's correction, metric by metric
        tests = [row.differences.get(name) for row in rows]
        corrected = holm([test.p if test else math.nan for test in tests])
        for row, test, p in zip(rows, tests, corrected, strict=True):
            if test:
                row.differences[name] = replace(test, p=p)
    return Table(
        f"{results.axis}: {results.question}",
        results.baseline,
        metrics,
        rows,
        _notes(results, at, rows, first, timing),
        timing,
    )


def _evaluation(results: Results, epoch: float | None) -> tuple[int, float]:
    """→ (step, epoch)"""
    there = sorted({(record["step"], record["epoch"]) for record in results.records})
    if not there:
        raise UserError(f"{results.axis} ({results.profile}) has no evaluation yet: run its sweep first")
    if epoch is None:
        return there[-1]
    nearest = min(there, key=lambda pair: abs(pair[1] - epoch))
    if abs(nearest[1] - epoch) > 0.01 * epoch:
        raise UserError(
            f"no evaluation at epoch {epoch:g}: there are {', '.join(f'{e:g}' for _, e in there)}"
        )
    return nearest


def _row(
    results: Results, arm: str, metrics: list[str], cells: Mapping, paper: Mapping[tuple[str, str], Paper]
) -> Row:
    def by_seed(of: str, value: Callable[[dict], float | None]) -> dict[int, float]:
        found = {seed: value(cells[of, seed]) for seed in results.seeds(of) if (of, seed) in cells}
        return {
            seed: number for seed, number in found.items() if number is not None and math.isfinite(number)
        }

    def ratios(key: str) -> Estimate | None:
        ours, theirs = by_seed(arm, lambda r: r[key]), by_seed(results.baseline, lambda r: r[key])
        return t_interval(
            [ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys()) if theirs[seed] > 0]
        )

    values, differences = {}, {}
    for name in metrics:
        ours = by_seed(arm, lambda r, name=name: r["metrics"].get(name))
        values[name] = t_interval(list(ours.values()))
        if arm != results.baseline:
            differences[name] = paired(
                ours, by_seed(results.baseline, lambda r, name=name: r["metrics"].get(name))
            )
    flops, primary = ratios("train_flops"), values[metrics[0]]
    known = {name: paper[arm, key] for name in metrics if (arm, key := papers_name(name)) in paper}
    n = primary.n if primary else 0
    seconds = ratios("train_seconds")
    return Row(
        arm, len(results.seeds(arm)), n, values, differences, known, flops.mean if flops else None, seconds
    )


def _notes(results: Results, epoch: float, rows: list[Row], metric: str, timing: bool) -> list[str]:
    run = results.records[0]["run"]
    protocol, reference = run["protocol"], run["reference"]
    tests = sum(not math.isnan(row.differences[metric].p) for row in rows if row.differences.get(metric))
    notes = [
        f"Mean ± half width of the 95 % t-interval over n seeds, at epoch {epoch:g}. Δ: arm minus {results.baseline}, paired by seed, with its "
        f"95 % t-interval; p: paired t-test, Holm-corrected over {tests} arm{'s' * (tests != 1)}. ↓ lower is better, ↑ higher. "
        f"FLOPs ×{' and time ×' * timing}: training cost up to there, relative to the baseline.",
        f"Profile {results.profile}. Protocol {protocol['name']} ({run['protocol_digest']}): {protocol['num_samples']:,} samples, "
        f"{protocol['class_rule']} classes, CFG {protocol['cfg_scale']:g}, {protocol['weights']} weights, extractor "
        f"{run['extractor']['name']}, reference {reference['name']}.",
    ]
    if any(row.paper for row in rows):
        notes.append(
            f"Paper: as published for LlamaGen-{paper_size(results)} on ImageNet 256×256 @epochs, and how it was read "
            "(reports/data/README.md)"
            + (
                "."
                if is_papers(results)
                else "; another data set, model and metric: compare the order of arms, not the values."
            )
        )
    absent = [f"{c['arm']} seed {c['seed']} ({c['status']})" for c in results.cells if c["status"] != "done"]
    if absent:
        shown = ", ".join(absent[:12]) + (f", and {len(absent) - 12} more" if len(absent) > 12 else "")
        notes.append(f"Not finished: {shown}. {MISSING}: no value.")
    return notes
