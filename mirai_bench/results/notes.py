"""The sentences below a table: how to read it, what it was measured with, and what its seeds can show."""

from __future__ import annotations

import math

from mirai_bench.results.controls import SOLVED, controls_note, solved_counts
from mirai_bench.results.frame import Results, is_distance
from mirai_bench.results.left_out import left_out_note
from mirai_bench.results.looks import Decisions, departures, named_families
from mirai_bench.results.machines import mixed_machines
from mirai_bench.results.paper import is_papers, paper_setting
from mirai_bench.results.plugged import plugins_note
from mirai_bench.results.row import Row
from mirai_bench.results.stats import CONFIDENCE, MOST_SEEDS, POWER, seeds_needed, smallest_shown
from mirai_bench.results.teachers import shared_teacher_note, teachers_note

MISSING = "—"
MOST_LISTED = 12  # unfinished cells that a note names


def notes_below(
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
        shared_teacher_note(results),
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


def _solved(results: Results, step: int) -> str:
    """Returns how many runs of each arm have solved a planted task, with an exact test."""
    counts = solved_counts(results, step)
    n, solved = counts[results.baseline].n, counts[results.baseline].solved
    texts = [f"{results.baseline} {solved} of {n}"]
    for arm, count in counts.items():
        if arm != results.baseline:
            texts.append(f"{arm} {count.solved} of {count.n} (p {count.p:.3f})")
    return f"Runs that solved the task: {', '.join(texts)}. p: Fisher's exact test, Holm-corrected."


def _how_to_read(
    results: Results, epoch: float, rows: list[Row], metric: str, timing: bool, decisions: Decisions | None
) -> str:
    tests = [row.differences.get(metric) for row in rows]
    num_tests = sum(test is not None and not math.isnan(test.p) for test in tests)
    arms = "1 arm" if num_tests == 1 else f"{num_tests} arms"
    interval = f"{100 * CONFIDENCE:g} % t-interval"
    over = arms if num_tests else ""  # a pilot tests nothing
    look = ""
    if decisions is not None and decisions.reached:
        n = decisions.looks[decisions.reached - 1]
        interval = f"{100 * (1 - decisions.level()):.1f} % t-interval"
        over = f"the family, to be compared with {decisions.level():.3f}"
        if any(0 < verdict.look < decisions.reached for verdict in decisions.verdicts.values()):
            over += " (with an earlier look's verdict: the p of that look)"
        others = _without_verdict(rows, decisions) + _behind(decisions)
        look = f" Look {decisions.reached} of {len(decisions.looks)} ({n} seeds).{others}"
    elif decisions is not None:
        n = decisions.looks[0]
        look = f" A pilot: no verdict is given before the first look at {n} seeds."
    what = f"arm minus {results.baseline}"
    if is_distance(metric):
        what = f"change relative to {results.baseline} (of the geometric mean)"
    p = f"; p: paired t-test, Holm-corrected over {over}" if over else ""
    costs = "FLOPs × and time ×" if timing else "FLOPs ×"
    return (
        f"Mean ± half width of the 95 % t-interval over n seeds, at epoch {epoch:g}.{look} Δ: {what}, "
        f"paired by seed, with its {interval}{p}. ↓ lower is better, ↑ higher. "
        f"{costs}: training cost up to there, relative to the baseline."
    )


def _without_verdict(rows: list[Row], decisions: Decisions) -> str:
    """Returns which arms get no verdict, as a sentence, or nothing."""
    arms = [row.arm for row in rows if row.differences and row.arm not in decisions.verdicts]
    if not arms:
        return ""
    return f" In no family that is tested, with intervals of {100 * CONFIDENCE:g} %: {', '.join(arms)}."


def _behind(decisions: Decisions) -> str:
    """Returns which arms belong to families that have not reached the last look, a sentence for each look."""
    sentences = []
    for reached in sorted(set(decisions.reached_by.values()) - {decisions.reached}, reverse=True):
        arms = [arm for arm, own in decisions.reached_by.items() if own == reached]
        if reached:
            level = decisions.level(arms[0])
            at = f"at look {reached} ({decisions.looks[reached - 1]} seeds), at the level of {level:.3f}"
        else:
            first = decisions.looks[0]
            at = f"before the first look at {first} seeds, with intervals of {100 * CONFIDENCE:g} %"
        sentences.append(f" Still {at}: {', '.join(arms)}.")
    return "".join(sentences)


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
    parts.append(f"families {'; '.join(named_families(plan['families'])) or 'all arms together'}")
    parts.append(f"exclusions {'; '.join(plan['exclusions']) or 'none'}")
    notes = [f"Registered before the first run ({plan['hash']}): {', '.join(parts)}."]
    found = departures(results)
    return [*notes, f"Departures from it: {'; '.join(found)}."] if found else notes


def _can_show(rows: list[Row], metric: str, decisions: Decisions | None) -> list[str]:
    """Returns which difference these seeds can show, and how many seeds the observed ones need."""
    tests = {row.arm: row.differences.get(metric) for row in rows}
    found = {arm: test for arm, test in tests.items() if test is not None and test.deviation > 0}
    if decisions is not None:
        found = {arm: test for arm, test in found.items() if arm in decisions.verdicts}
    if not found:
        return []
    # The arms differ little in their deviation, which few seeds cannot tell apart: it is pooled.
    deviation = math.sqrt(sum(test.deviation**2 for test in found.values()) / len(found))
    groups: dict[tuple[float, int], int] = {}  # by level and size of a family the most seeds of its arms
    needed = []
    for arm, test in found.items():
        size = decisions.family_size[arm] if decisions else len(found)
        level = decisions.level(arm) if decisions else 1 - CONFIDENCE
        groups[level, size] = max(test.n, groups.get((level, size), 0))
        seeds = seeds_needed(test.mean, deviation, level / size)
        needed.append(f"{arm} {f'over {MOST_SEEDS:,}' if seeds is None else seeds}")
    texts = []
    for (level, size), n in groups.items():
        shown = as_change(smallest_shown(n, deviation, level / size), metric)
        texts.append(f"with {n} seeds a difference of {shown} (corrected over {size})")
    return [
        f"These seeds show with a probability of {POWER:g}, by the paired s.d. of these runs: "
        f"{'; '.join(texts)}. Seeds that the observed differences would need: {', '.join(needed)}."
    ]


def as_change(difference: float, metric: str) -> str:
    """Writes the size of a difference: of logarithms as a share of the baseline that is gained."""
    if math.isinf(difference):
        return "any size (one seed has no interval)"
    return f"{-100 * math.expm1(-difference):.0f} %" if is_distance(metric) else f"{difference:.2g}"
