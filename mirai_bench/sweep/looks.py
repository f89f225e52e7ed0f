"""The looks of a sweep file, before and between trainings: what seeds can show, and which come next."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from mirai_bench.results.frame import primary_metric
from mirai_bench.results.looks import decide, levels, registered_families
from mirai_bench.results.noise import deviation_of, read_panel
from mirai_bench.results.notes import as_change
from mirai_bench.results.reading import read_journals
from mirai_bench.results.stats import POWER, smallest_shown
from mirai_bench.sweep.driver import missing
from mirai_bench.sweep.plan import Plan, make_plan

log = logging.getLogger(__name__)


def next_look(
    plan: Plan, path: Path, *, profile: str | None, only: Sequence[str], settings: Sequence[str]
) -> Plan | None:
    """Returns the plan of the next look: more seeds of the arms that have no verdict yet.

    `path` is the sweep file, and the rest are the choices of the command line. Returns None if all
    arms have a verdict, if there is no further look, or if it waits for arms that are not in `only`.
    """
    (results,) = read_journals(plan.runs, plan.sweep.axis, plan.profile)
    decisions = decide(results, results.last_step, results.primary)
    assert decisions is not None, "the command has refused a file without looks"
    if decisions.reached:
        verdicts = ", ".join(f"{arm} {verdict.word}" for arm, verdict in decisions.verdicts.items())
        log.info(f"look {decisions.reached} of {len(decisions.looks)}: {verdicts}")
    upcoming = decisions.next_look
    if upcoming is None:
        return None
    number, undecided = upcoming
    log.info(f"on to the look at {decisions.looks[number]} seeds")
    seeds = plan.sweep.registered["seeds"][: decisions.looks[number]]
    arms = [plan.sweep.baseline, *(arm for arm in undecided if arm in only or not only)]
    following = make_plan(path, profile=profile, seeds=seeds, only=arms, settings=settings)
    if not missing(following):
        unfinished = [cell for cell in results.cells if cell["status"] != "done" and cell["seed"] in seeds]
        names = ", ".join(dict.fromkeys(cell["arm"] for cell in unfinished))
        log.info(f"this look waits for arms that --only leaves out: {names}")
        return None
    return following


def can_show(plan: Plan) -> str:
    """Returns which difference the seeds of a plan can show, by the noise panel of its profile."""
    # 1. The noise. Runs of a seed share what they can, so that arms paired by seed differ by less.
    config = plan.sweep.cells[0].config
    panel = read_panel(plan.profile)
    named = config.evaluation.primary
    metric = named or (primary_metric(list(panel[1]["metrics"])) if panel else "")
    deviation = deviation_of(panel, config.for_record(), metric)
    if deviation is None:
        return (
            f"What these seeds can show is not known: there is no noise panel of {plan.profile} with this "
            "recipe (python -m mirai_bench.sweep noise PROFILE, a name or a file, makes one)"
        )
    # 2. What each look can show, corrected over the arms of the largest family. Without planned looks
    #    there is one, at the end.
    registered = plan.sweep.registered
    num_tests = len(plan.sweep.arms) - 1
    if registered["looks"]:
        num_tests = max(map(len, registered_families(registered, plan.sweep.baseline)))
    seeds = len({cell.seed for cell in plan.sweep.cells})
    looks = registered["looks"] or [seeds]
    texts = []
    for n, level in zip(looks, levels(looks), strict=True):
        shown = smallest_shown(n, math.sqrt(2) * deviation, level / max(1, num_tests))
        texts.append(f"{as_change(shown, metric)} with {n} seeds")
    note = f"; {seeds} seeds are a pilot, without verdicts" if seeds < looks[0] else ""
    return (
        f"Differences in {metric} that are shown with a probability of {POWER:g}, by the noise panel and "
        f"without what pairing by seed gains: {', '.join(texts)}{note}"
    )
