"""The kinds of comparison that claims.yaml may ask for, and what each says about a claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diagnosis_table import with_interval
from speedup import speedup

from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.frame import Results, is_distance, lower_is_better
from mirai_bench.results.looks import LEVEL, SMALL, UNDECIDED, is_small, level_of
from mirai_bench.results.stats import CONFIDENCE, paired, ratio
from mirai_bench.results.writers import difference
from mirai_bench.utils.errors import UserError, unknown

CANNOT = "cannot be decided by this profile"
COSTS = {"epochs": "epochs", "flops": "FLOPs"}  # that a speed-up may be counted in

Test = dict[str, Any]  # a comparison, as claims.yaml describes it


@dataclass(frozen=True)
class Evidence:
    """What one comparison says about a claim."""

    verdict: str
    text: str


def verdict(inside: bool, outside: bool) -> str:
    """Returns the verdict of an interval that lies wholly inside, wholly outside, or neither."""
    if inside:
        return "supported"
    return "contradicted" if outside else UNDECIDED


def looks_of(results: Results) -> Sequence[int]:
    """Returns the numbers of seeds of the planned looks, none if none are planned."""
    looks: Sequence[int] = results.registered.get("now", {}).get("looks", ())
    return looks


def is_pilot(results: Results, n: int) -> bool:
    """Tells whether n seeds are fewer than those of the first planned look."""
    looks = looks_of(results)
    return len(looks) > 0 and n < looks[0]


def levels_of(results: Results, n: int, strict: float) -> tuple[float, float]:
    """Returns the confidence of an interval of n seeds, and that of one that contradicts.

    It is that of the last planned look which the seeds have reached. The other one is stricter by the
    same factor as `strict` is than 95 %.
    """
    level = level_of(looks_of(results), n)
    return 1 - level, 1 - level * (1 - strict) / LEVEL


def seeds_and_level(results: Results, n: int) -> str:
    """Returns the number of seeds in words, with the level of the intervals if it is not 95 %."""
    confidence = 1 - level_of(looks_of(results), n)
    return f"n {n}" if math.isclose(confidence, CONFIDENCE) else f"n {n} ({100 * confidence:.1f} %)"


# ---- the kinds of comparison. `strict` is the confidence that a contradiction needs without looks.


def compare_better(results: Results, test: Test, strict: float) -> Evidence:
    """Compares the arm `better` with the arm `than`."""
    # 1. The difference ours - theirs, or that of the logarithms.
    metric = test.get("metric") or results.primary
    in_log = is_distance(metric)
    ours = at_last(results, test["better"], metric)
    theirs = at_last(results, test["than"], metric)
    n = len(ours.keys() & theirs.keys())
    found, wide = (paired(ours, theirs, each, in_log=in_log) for each in levels_of(results, n, strict))
    what = f"{metric}: {test['better']} {'relative to' if in_log else 'minus'} {test['than']}"
    text = f"{what} {difference(found, metric)}, {seeds_and_level(results, n)}"
    if found is None or wide is None or math.isnan(found.half):
        return Evidence(UNDECIDED, text)
    # 2. A sweep that has not come to its first look decides nothing.
    if is_pilot(results, found.n):
        return Evidence(UNDECIDED, f"{text}, a pilot")
    # 3. The claim is a side of 0. Within the smallest effect of interest it is neither.
    if is_small(wide, results.registered.get("now", {}).get("smallest_effect"), metric):
        return Evidence(SMALL, text)
    if lower_is_better(metric):
        return Evidence(verdict(found.high < 0, wide.low > 0), text)
    return Evidence(verdict(found.low > 0, wide.high < 0), text)


def compare_speedup(results: Results, test: Test, strict: float) -> Evidence:
    """Compares the speed-up of an arm in epochs or FLOPs, to the baseline's final value, with a factor."""
    metric = results.primary
    factor = float(test["speedup"])
    cost = test.get("cost", "epochs")
    if cost not in COSTS:
        raise unknown("cost of a speed-up", cost, COSTS)
    n = len(at_last(results, test["arm"], metric).keys() & at_last(results, results.baseline, metric).keys())
    found, wide = (
        speedup(results, test["arm"], metric, cost, "final", each) for each in levels_of(results, n, strict)
    )
    seeds = seeds_and_level(results, found.n)
    text = f"{test['arm']} reaches the baseline's final {metric}: {found} in {COSTS[cost]}, {seeds}"
    if factor > found.greatest:
        more = f"the evaluations of this profile could show {found.greatest:.3g}× at most"
        return Evidence(CANNOT, f"{text}; {more}")
    if is_pilot(results, found.n):
        return Evidence(UNDECIDED, f"{text}, a pilot")
    return Evidence(verdict(found.sure_low >= factor, wide.sure_high < factor), text)


def compare_same(results: Results, test: Test, strict: float) -> Evidence:
    """Compares a quantity of an arm, over the baseline's, with 1."""
    ours = at_last(results, test["arm"], test["same"])
    theirs = at_last(results, results.baseline, test["same"])
    n = len(ours.keys() & theirs.keys())
    found, wide = (ratio(ours, theirs, each) for each in levels_of(results, n, strict))
    what = f"{test['same']}: {test['arm']} over {results.baseline}"
    if found is None or wide is None or math.isnan(found.half):
        mean = found.mean if found else math.nan
        return Evidence(UNDECIDED, f"{what} {mean:.3f}, n {found.n if found else 0}")
    # A test of equivalence. That a difference is not significant would not show that there is none.
    low = 1 - test["within"]
    high = 1 + test["within"]
    seeds = seeds_and_level(results, found.n)
    text = f"{what} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}], {seeds}"
    same = low <= found.low and found.high <= high
    return Evidence(verdict(same, wide.high < low or wide.low > high), text)


# For the key that tells the kind: the other keys that it needs, and the comparison.
KINDS: dict[str, tuple[set[str], Callable[[Results, Test, float], Evidence]]] = {
    "better": ({"axis", "than"}, compare_better),
    "speedup": ({"axis", "arm"}, compare_speedup),
    "same": ({"axis", "arm", "within"}, compare_same),
}
# The kind that reads diagnoses, and not evaluations.
DIAGNOSED = "diagnosed"
# Keys that a comparison of a kind may have besides. All may have a `profile`: the only one that tests them.
MAY_HAVE = {"better": {"metric"}, "speedup": {"cost"}}
NEEDS = {kind: needs for kind, (needs, _) in KINDS.items()} | {DIAGNOSED: {"axis", "more", "than"}}


def compare_diagnosed(diagnoses: Diagnoses, test: Test, strict: float) -> Evidence:
    """Compares a value of a diagnostic, which is to be larger in the arm `more` than in the arm `than`."""
    diagnostic, value = test[DIAGNOSED].split("/")
    ours, theirs = (diagnoses.by_seed(diagnostic, test[arm], value) for arm in ("more", "than"))
    n = len(ours.keys() & theirs.keys())
    found, wide = (paired(ours, theirs, each) for each in levels_of(diagnoses.results, n, strict))
    text = f"{diagnostic} {value}: {test['more']} minus {test['than']} {with_interval(found)}"
    text += f", {seeds_and_level(diagnoses.results, n)}"
    if found is None or wide is None or math.isnan(found.half):
        return Evidence(UNDECIDED, text)
    if is_pilot(diagnoses.results, found.n):
        return Evidence(UNDECIDED, f"{text}, a pilot")
    return Evidence(verdict(found.low > 0, wide.high < 0), text)


def kind_of(test: Test) -> str:
    """Returns the kind of a comparison.

    Raises UserError if it is unknown, or has other keys than it needs.
    """
    for kind, needs in NEEDS.items():
        if kind in test:
            # A misspelt key would otherwise be a comparison that nobody meant.
            missing = ", ".join(sorted(needs - test.keys()))
            extra = ", ".join(sorted(test.keys() - needs - {kind, *MAY_HAVE.get(kind, ()), "profile"}))
            if missing or extra:
                problem = f"lacks {missing}" if missing else f"has {extra}"
                raise UserError(f"claims.yaml: {test} {problem}")
            return kind
    raise unknown("kind of comparison", next(iter(test), ""), NEEDS)


def at_last(results: Results, arm: str, name: str) -> dict[int, float]:
    """Returns a quantity of an arm at the sweep's last evaluation, by seed."""
    return results.by_seed(arm, results.last_step, name)


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
