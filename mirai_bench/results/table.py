"""One table of the arms of a sweep.

forms.py writes it as Markdown, CSV, LaTeX and HTML, all from the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mirai_bench.results.controls import SOLVED, controls_note, solved_counts
from mirai_bench.results.cost import one_off_notes, with_one_off
from mirai_bench.results.frame import Results, is_distance, refuse_mixed_protocols
from mirai_bench.results.left_out import left_out_note
from mirai_bench.results.looks import PILOT, Decisions, decide, departures
from mirai_bench.results.machines import mixed_machines
from mirai_bench.results.noise import deviation_of, noise_floor, read_panel
from mirai_bench.results.paper import Paper, PaperValues, is_papers, paper_setting, paper_values, papers_name
from mirai_bench.results.plugged import plugins_note
from mirai_bench.results.stats import (
    CONFIDENCE,
    MOST_SEEDS,
    POWER,
    Estimate,
    Values,
    holm,
    paired,
    ratio,
    seeds_needed,
    smallest_shown,
    t_interval,
)
from mirai_bench.results.teachers import TEACHER, taught_by_judge, teachers_note
from mirai_bench.utils.errors import UserError

MISSING = "—"
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
arms; of a Fréchet distance that of the logarithms. Empty for the baseline itself."""
    verdict: str | None
    """The verdict by the primary metric, if looks are planned and this arm is in a family. TEACHER if \
the arm's own teacher would give it."""
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
    floor: float | None
    """Difference in the primary metric that noise alone exceeds in 5 % of cases, by the profile's noise \
panel, if it has one for this recipe. Of a Fréchet distance that of the logarithms."""
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
    notes = [*_notes(results, step, at, rows, first, timing, decisions, floor), *cost_notes]
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
    """Applies Holm's correction over the arms to the p-values of each metric.

    An arm that a metric cannot judge is not tested by it.
    """
    # One family of tests per metric, because each metric is a question of its own.
    for name in metrics:
        barred = taught_by_judge(results, name)
        tests = [row.differences.get(name) for row in rows]
        p_values = [
            test.p if test and row.arm not in barred else math.nan
            for row, test in zip(rows, tests, strict=True)
        ]
        corrected = holm(p_values)
        for row, test, p in zip(rows, tests, corrected, strict=True):
            if test:
                row.differences[name] = replace(test, p=p)


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


def _solved(results: Results, step: int) -> str:
    """Returns how many runs of each arm have solved a planted task, with an exact test."""
    counts = solved_counts(results, step)
    n, solved = counts[results.baseline].n, counts[results.baseline].solved
    texts = [f"{results.baseline} {solved} of {n}"]
    for arm, count in counts.items():
        if arm != results.baseline:
            texts.append(f"{arm} {count.solved} of {count.n} (p {count.p:.3f})")
    return f"Runs that solved the task: {', '.join(texts)}. p: Fisher's exact test, Holm-corrected."


def _notes(
    results: Results,
    step: int,
    epoch: float,
    rows: list[Row],
    metric: str,
    timing: bool,
    decisions: Decisions | None,
    floor: float | None,
) -> list[str]:
    """Returns the sentences below the table."""
    # 1. How to read the numbers, and what they were measured with.
    run = results.records[0]["run"]  # the protocol is that of all records
    protocol = run["protocol"]
    notes = [_how_to_read(results, epoch, rows, metric, timing, decisions)]
    recipe = run["config"].get("train", {}).get("recipe", "untuned")
    notes.append(
        f"Profile {results.profile}, recipe: {recipe}. Protocol {protocol['name']} "
        f"({run['protocol_digest']}): {protocol['num_samples']:,} samples, {protocol['class_rule']} "
        f"classes, CFG {protocol['cfg_scale']:g}, {protocol['weights']} weights, extractor "
        f"{run['extractor']['name']}, reference {run['reference']['name']}."
    )
    if results.settings:
        notes.append(f"Not as the sweep file has it: {', '.join(results.settings)} (--set).")
    # 2. What decides, and what these seeds can show.
    notes += _registered(results)
    if floor is not None:
        notes.append(
            f"Noise floor: {as_change(floor, metric)}, the difference of two unpaired means that noise "
            f"alone exceeds in 5 % of cases at this n (noise panel of {results.profile})."
        )
    notes += _can_show(rows, metric, decisions)
    # 3. The paper's column.
    if any(row.paper for row in rows):
        other = "; another data set, model and metric: compare the order of arms, not the values"
        notes.append(
            f"Paper: as published for {paper_setting(results)} @epochs, "
            f"and how it was read (reports/data/README.md){'' if is_papers(results) else other}."
        )
    # 4. Whom the metric cannot judge, what the controls say, where the runs were computed, and what is
    #    still missing.
    found = (
        teachers_note(results, metric),
        controls_note(results),
        mixed_machines(results),
        left_out_note(results),
        plugins_note(results),
    )
    notes += [note for note in found if note is not None]
    if SOLVED in results.metrics:
        notes.append(_solved(results, step))
    unfinished = [cell for cell in results.cells if cell["status"] != "done"]
    if unfinished:
        names = [f"{cell['arm']} seed {cell['seed']} ({cell['status']})" for cell in unfinished]
        listed = ", ".join(names[:MOST_LISTED])
        if len(names) > MOST_LISTED:
            listed += f", and {len(names) - MOST_LISTED} more"
        notes.append(f"Not finished: {listed}. {MISSING}: no value.")
    return notes


def _how_to_read(
    results: Results, epoch: float, rows: list[Row], metric: str, timing: bool, decisions: Decisions | None
) -> str:
    tests = [row.differences.get(metric) for row in rows]
    num_tests = sum(test is not None and not math.isnan(test.p) for test in tests)
    arms = "1 arm" if num_tests == 1 else f"{num_tests} arms"
    interval = f"{100 * CONFIDENCE:g} % t-interval"
    p = f"Holm-corrected over {arms}"
    look = ""
    if decisions is not None and decisions.reached:
        n = decisions.looks[decisions.reached - 1]
        interval = f"{100 * (1 - decisions.level):.1f} % t-interval"
        p = f"Holm-corrected over the family, to be compared with {decisions.level:.3f}"
        if any(0 < verdict.look < decisions.reached for verdict in decisions.verdicts.values()):
            p += " (with an earlier look's verdict: the p of that look)"
        look = f" Look {decisions.reached} of {len(decisions.looks)} ({n} seeds)."
    elif decisions is not None:
        n = decisions.looks[0]
        look = f" A pilot: no verdict is given before the first look at {n} seeds."
    what = f"arm minus {results.baseline}"
    if is_distance(metric):
        what = f"change relative to {results.baseline} (of the geometric mean)"
    costs = "FLOPs × and time ×" if timing else "FLOPs ×"
    return (
        f"Mean ± half width of the 95 % t-interval over n seeds, at epoch {epoch:g}.{look} Δ: {what}, "
        f"paired by seed, with its {interval}; p: paired t-test, {p}. ↓ lower is better, ↑ higher. "
        f"{costs}: training cost up to there, relative to the baseline."
    )


def _registered(results: Results) -> list[str]:
    """Returns what was to decide before the first run, and what decides otherwise now."""
    plan = results.registered.get("first")
    if not plan or not plan["looks"]:
        return []
    looks = ", ".join(map(str, plan["looks"]))
    smallest = plan["smallest_effect"]
    parts = [f"primary metric {plan['primary'] or results.primary}", f"looks at {looks} seeds"]
    if smallest is not None:
        text = f"{100 * smallest:g} %" if is_distance(results.primary) else f"{smallest:g}"
        parts.append(f"smallest effect of interest {text}")
    named = [f"{name} ({', '.join(arms)})" for name, arms in plan["families"].items()]
    parts.append(f"families {'; '.join(named) or 'all arms together'}")
    parts.append(f"exclusions {'; '.join(plan['exclusions']) or 'none'}")
    notes = [f"Registered before the first run ({plan['hash']}): {', '.join(parts)}."]
    found = departures(results)
    return [*notes, f"Departures from it: {'; '.join(found)}."] if found else notes


def _can_show(rows: list[Row], metric: str, decisions: Decisions | None) -> list[str]:
    """Returns which difference these seeds can show, and how many seeds the observed ones need."""
    tests = {row.arm: row.differences.get(metric) for row in rows}
    found = {arm: test for arm, test in tests.items() if test is not None and test.deviation > 0}
    if not found:
        return []
    # The arms differ little in their deviation, which few seeds cannot tell apart: it is pooled.
    deviation = math.sqrt(sum(test.deviation**2 for test in found.values()) / len(found))
    n = max(test.n for test in found.values())
    level = (decisions.level if decisions else 1 - CONFIDENCE) / len(found)
    shown = as_change(smallest_shown(n, deviation, level), metric)
    needed = []
    for arm, test in found.items():
        seeds = seeds_needed(test.mean, deviation, level)
        needed.append(f"{arm} {f'over {MOST_SEEDS:,}' if seeds is None else seeds}")
    return [
        f"With {n} seeds a difference of {shown} is shown with a probability of {POWER:g} (paired s.d. of "
        f"these runs, corrected over {len(found)}). Seeds that the observed differences would need: "
        f"{', '.join(needed)}."
    ]


def as_change(difference: float, metric: str) -> str:
    """Writes the size of a difference: of logarithms as a share of the baseline that is gained."""
    if math.isinf(difference):
        return "any size (one seed has no interval)"
    return f"{-100 * math.expm1(-difference):.0f} %" if is_distance(metric) else f"{difference:.2g}"
