"""Planned looks: at which numbers of seeds a sweep decides, and the verdict on each arm.

What decides is written in the sweep file before the first run (`Decision` in config/sweep_file.py),
and goes into the plan of the sweep together with its hash. Looking several times at growing data
finds something sooner or later, so the looks share one level of 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mirai_bench.results.frame import Results, is_distance, lower_is_better
from mirai_bench.results.stats import CONFIDENCE, Estimate, Values, holm, paired
from mirai_bench.results.teachers import taught_by_judge

LEVEL = 1 - CONFIDENCE  # of all looks together
# Verdicts.
PILOT = "pilot"
UNDECIDED = "undecided"
BETTER = "better"
WORSE = "worse"
SMALL = "below the smallest effect of interest"
FINAL = (BETTER, WORSE, SMALL)


@dataclass(frozen=True)
class Verdict:
    """What the looks so far say about an arm."""

    word: str
    """PILOT before the first look, UNDECIDED, or one of FINAL."""
    look: int
    """Number of the look that gave it, from 1. It is 0 for PILOT."""
    estimate: Estimate | None
    """The difference to the baseline at the last look that was reached; of the logarithms for a \
Fréchet distance. Its p is that of the look that gave the verdict, corrected over the family. It is \
None for PILOT, or without a pair of seeds."""


@dataclass(frozen=True)
class Family:
    """Arms that are tested together (Holm's correction)."""

    arms: list[str]
    """Those that are in the plan."""
    absent: int
    """Number of registered arms that are not, because a command has left them out. They count as tests \
that show nothing: which arms are trained must not make the others' tests milder."""

    @property
    def size(self) -> int:
        """Returns the number of tests."""
        return len(self.arms) + self.absent

    def corrected(self, p_values: Sequence[float]) -> dict[str, float]:
        """Returns the corrected p-value of each arm. A nan, of an arm without a test, is not counted."""
        return dict(zip(self.arms, holm([*p_values, *[1.0] * self.absent]), strict=False))


@dataclass(frozen=True)
class Decisions:
    """The verdicts on the arms of a sweep, and where it stands."""

    looks: tuple[int, ...]
    """Number of seeds at each planned look."""
    reached_by: Mapping[str, int]
    """By arm the number of looks that its family has reached. Families are corrected apart, so that one \
which was added later may be at an earlier look."""
    family_size: Mapping[str, int]
    """By arm the number of arms that are tested with it, itself included."""
    verdicts: Mapping[str, Verdict]
    """By arm, without the baseline, arms of no family, and arms whose own teacher would judge them."""

    @property
    def reached(self) -> int:
        """Returns the number of looks that the family which is furthest has reached."""
        return max(self.reached_by.values(), default=0)

    def level(self, arm: str | None = None) -> float:
        """Returns the level of the last look that was reached, by the family of `arm` or by any.

        Before the first look it is the level of that one.
        """
        reached = self.reached if arm is None else self.reached_by[arm]
        return level_of(self.looks, self.looks[max(0, reached - 1)])

    @property
    def undecided(self) -> list[str]:
        """Returns the arms without a verdict that stays."""
        return [arm for arm, verdict in self.verdicts.items() if verdict.word not in FINAL]

    @property
    def next_look(self) -> tuple[int, list[str]] | None:
        """Returns the number of the next look, from 0, and the arms that it could decide.

        Returns None if no look remains, or none is needed.
        """
        reached = [self.reached_by[arm] for arm in self.undecided]
        number = min(reached, default=len(self.looks))
        if number == len(self.looks):
            return None
        return number, [arm for arm in self.undecided if self.reached_by[arm] == number]


def levels(looks: Sequence[int]) -> list[float]:
    """Returns the level of the test at each look, from the numbers of seeds. They add up to LEVEL.

    By a share t of the last look's seeds, α ln(1 + (e - 1) t) of the level α is spent (K. Lan and
    D. DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 1983: the function
    like Pocock's). A look gets what is spent since the one before, so that the probability of a
    false positive at any look is at most α, however the looks depend on each other.
    """
    spent = [LEVEL * math.log1p((math.e - 1) * n / looks[-1]) for n in looks]
    before = [0.0, *spent[:-1]]
    return [now - earlier for now, earlier in zip(spent, before, strict=True)]


def level_of(looks: Sequence[int], n: int) -> float:
    """Returns the level of the last look that n seeds reach, or of the first one if they reach none.

    Without planned looks it is LEVEL.
    """
    if not looks:
        return LEVEL
    return levels(looks)[max(0, sum(look <= n for look in looks) - 1)]


def smallest_difference(effect: float, metric: str) -> float:
    """Returns a smallest effect of interest as a difference: of logarithms for a Fréchet distance."""
    return -math.log1p(-effect) if is_distance(metric) else effect


def is_small(wide: Estimate, smallest: float | None, metric: str) -> bool:
    """Tells whether a corrected interval lies within ± the smallest effect of interest, if there is one.

    These are two one-sided tests (D. Schuirmann, 1987).
    """
    if smallest is None:
        return False
    bound = smallest_difference(smallest, metric)
    return -bound < wide.low and wide.high < bound


def decide(results: Results, step: int, metric: str) -> Decisions | None:
    """Returns the verdicts by the metric at an evaluation, or None if no looks are planned."""
    plan = results.registered.get("now", {})
    if not plan.get("looks"):
        return None
    looks = tuple(plan["looks"])
    reached_by: dict[str, int] = {}
    sizes: dict[str, int] = {}
    verdicts: dict[str, Verdict] = {}
    for family in tested_together(results, metric):
        values = {arm: results.by_seed(arm, step, metric) for arm in (*family.arms, results.baseline)}
        reached = sum(_is_reached(results, values, plan["seeds"][:n]) for n in looks)
        reached_by |= dict.fromkeys(family.arms, reached)
        sizes |= dict.fromkeys(family.arms, family.size)
        verdicts |= {arm: Verdict(PILOT, 0, None) for arm in family.arms}
        for number in range(reached):
            seeds = plan["seeds"][: looks[number]]
            own = {arm: _of_seeds(of_arm, seeds) for arm, of_arm in values.items()}
            _look(verdicts, family, own, plan, results.baseline, metric, number)
    return Decisions(looks, reached_by, sizes, verdicts)


def departures(results: Results) -> list[str]:
    """Returns what decides otherwise now than was registered before the first run, a sentence each."""
    first = results.registered.get("first", {})
    now = results.registered.get("now", {})
    found: list[str] = []
    for name in now:
        if name != "hash" and first.get(name) != now[name]:
            found += _departure(name, first.get(name), now[name])
    return found


def _departure(name: str, first: Any, now: Any) -> list[str]:
    """Returns how a field departs from what it was: of arms and families what is new and what is gone."""
    if name not in ("arms", "families") or first is None:
        return [f"{name} was {first} and is {now}"]
    before = named_families(first) if name == "families" else first
    after = named_families(now) if name == "families" else now
    changes = {
        "added": [item for item in after if item not in before],
        "removed": [item for item in before if item not in after],
    }
    found = [f"{name} {how}: {', '.join(items)}" for how, items in changes.items() if items]
    return found or [f"{name} reordered"]


def named_families(families: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns each family as its name and its arms."""
    return [f"{name} ({', '.join(arms)})" for name, arms in families.items()]


def registered_families(plan: Mapping[str, Any], baseline: str) -> list[list[str]]:
    """Returns the arms of each family that a sweep file registers; by default all arms are one."""
    others = [arm for arm in plan["arms"] if arm != baseline]
    return [list(family) for family in plan["families"].values()] or [others]


def tested_together(results: Results, metric: str) -> list[Family]:
    """Returns the families of arms that are corrected together; by default all arms are one.

    Arms that the metric cannot judge are left out, and where families are named all others.
    """
    plan = results.registered.get("now", {})
    barred = taught_by_judge(results, metric)
    others = [arm for arm in results.arms if arm != results.baseline and arm not in barred]
    if not plan.get("looks"):
        return [Family(others, 0)]
    found = []
    for named in registered_families(plan, results.baseline):
        arms = [arm for arm in named if arm in others]
        found.append(Family(arms, sum(arm not in results.arms for arm in named)))
    return [family for family in found if family.arms]


def _is_reached(results: Results, values: Mapping[str, Values], seeds: Sequence[int]) -> bool:
    """Tells whether each cell of these arms and seeds has a value or has failed, where it was planned.

    An arm that is no longer trained after its verdict has no cells of later seeds.
    """
    planned = {(cell["arm"], cell["seed"]): cell["status"] for cell in results.cells}
    for seed in seeds:
        for arm in values:
            status = planned.get((arm, seed))
            if seed not in values[arm] and status not in ("failed", None):
                return False
        if (results.baseline, seed) not in planned:
            return False
    return True


def _of_seeds(values: Values, seeds: Sequence[int]) -> dict[int, float]:
    return {seed: values[seed] for seed in seeds if seed in values}


def _look(
    verdicts: dict[str, Verdict],
    family: Family,
    values: Mapping[str, Values],
    plan: Mapping[str, Any],
    baseline: str,
    metric: str,
    number: int,
) -> None:
    """Updates the verdicts on a family at look `number`, from 0."""
    level = levels(plan["looks"])[number]
    in_log = is_distance(metric)
    # 1. The tests. An arm with a verdict is tested no more: one that has been shown counts as rejected
    #    and one that is below the smallest effect as accepted (Holm's correction over looks).
    estimates: dict[str, Estimate | None] = {}
    p_values = []
    for arm in family.arms:
        found = paired(values[arm], values[baseline], 1 - level, in_log=in_log)
        estimates[arm] = found
        tested = found.p if found else math.nan
        p_values.append({SMALL: 1.0, BETTER: 0.0, WORSE: 0.0}.get(verdicts[arm].word, tested))
    corrected = family.corrected(p_values)
    # 2. The verdicts.
    for arm, found in estimates.items():
        earlier = verdicts[arm]
        if earlier.word in FINAL:
            if found is not None and earlier.estimate is not None:
                verdicts[arm] = replace(earlier, estimate=replace(found, p=earlier.estimate.p))
            continue
        wide = paired(values[arm], values[baseline], 1 - level / family.size, in_log=in_log)
        word = UNDECIDED
        if found is not None and wide is not None and not math.isnan(found.half):
            found = replace(found, p=corrected[arm])
            if is_small(wide, plan["smallest_effect"], metric):
                word = SMALL
            elif corrected[arm] < level:
                word = BETTER if (found.mean < 0) == lower_is_better(metric) else WORSE
        verdicts[arm] = Verdict(word, number + 1, found)
