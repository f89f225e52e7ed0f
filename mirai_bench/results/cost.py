"""What training has cost: the axes of a comparison, one-off costs, and tables at equal cost.

The one-off cost of a run is what was spent for its teacher before its first step. It counts by
default. A teacher that was trained once and serves many runs counts in each of them: an arm is
compared with the baseline as somebody would pay for it who trains only these two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.results.configs import foresight_of
from mirai_bench.results.controls import SOLVED
from mirai_bench.results.frame import Results, is_distance, value_of
from mirai_bench.tracking.records import COSTS, ONE_OFF

# What a curve is drawn against: the field of a record, and its name on an axis.
AXES = {
    "epochs": ("epoch", "epochs"),
    "flops": ("train_flops", "training FLOPs"),
    "seconds": ("train_seconds", "training time (s)"),
}
# The one-off cost that belongs to a cost.
_ONE_OFF_OF = dict(zip(("train_flops", "train_seconds"), ONE_OFF, strict=True))

Record = dict[str, Any]


# ---- one-off costs


def one_off(record: Record, cost: str) -> float | None:
    """Returns the one-off part of a cost of a record, or None if it is not known.

    A record that is older than the field has none. It is 0 if its configuration names no teacher
    that is made beforehand.
    """
    field = _ONE_OFF_OF[cost]
    if field in record:
        value: float | None = record[field]
        return value
    return None if _made_beforehand(foresight_of(record["run"])) else 0.0


def _made_beforehand(foresight: ForesightConfig) -> bool:
    """Tells whether a teacher of this configuration is trained here, or its features are stored."""
    encoder = foresight.encoder
    trains_encoder = encoder.name == "masked_tokens" and encoder.weights is None
    return foresight.trains_teacher or (foresight.uses_encoder and (trains_encoder or encoder.cache))


def spent(record: Record, axis: str) -> float | None:
    """Returns what a run had spent up to a record, its one-off cost included, if it is known."""
    field, _ = AXES[axis]
    value = value_of(record, field)
    if value is None or field not in _ONE_OFF_OF:  # epochs have no one-off cost
        return value
    once = one_off(record, field)
    return None if once is None else value + once


def with_one_off(results: Results) -> Results:
    """Returns the results with the one-off costs in the training costs.

    Their one-off fields are then 0, so that nothing counts twice.
    """
    records = []
    for record in results.records:
        costs = {AXES[axis][0]: spent(record, axis) for axis in ("flops", "seconds")}
        records.append(record | costs | dict.fromkeys(ONE_OFF, 0.0))
    return replace(results, records=records)


def without_one_off(results: Results) -> Results:
    """Returns the results as if their one-off costs were 0."""
    return replace(results, records=[record | dict.fromkeys(ONE_OFF, 0.0) for record in results.records])


def one_off_notes(results: Results, included: bool = True, timing: bool = True) -> list[str]:
    """Returns sentences that say what the costs of these results hold, and what they do not.

    Without `timing` only FLOPs are spoken of.
    """
    costs = {"train_flops": "FLOPs"} | ({"train_seconds": "seconds"} if timing else {})
    # 1. The arms that have a teacher, and what is not known of it.
    by_arm: dict[str, list[Record]] = {arm: [] for arm in results.arms}
    for record in results.records:
        by_arm[record["arm"]].append(record)
    found = {}
    for cost in costs:
        found[cost] = {arm: [one_off(record, cost) for record in own] for arm, own in by_arm.items()}
    teachers = [arm for arm in by_arm if any(set(found[cost][arm]) - {0} for cost in costs)]
    elsewhere = [arm for arm, own in by_arm.items() if any(map(_trained_elsewhere, own))]
    # 2. The sentences.
    notes = []
    if teachers and included:
        notes.append(
            f"Costs include the one-off cost of the teacher of {', '.join(teachers)}, whole in each of its "
            "runs."
        )
        for cost, name in costs.items():
            unknown = ", ".join(arm for arm in by_arm if None in found[cost][arm])
            if unknown:
                notes.append(f"The one-off cost in {name} is not known for {unknown}.")
    elif teachers:
        notes.append(
            "One-off costs are left out (--without-one-off): what the teacher of "
            f"{', '.join(teachers)} cost before the first step."
        )
    if elsewhere:
        notes.append(
            f"The weights of the teacher of {', '.join(elsewhere)} come from elsewhere: their training is "
            "not counted, only their forward passes."
        )
    return notes


def _trained_elsewhere(record: Record) -> bool:
    foresight = foresight_of(record["run"])
    if foresight.internal and foresight.source == "frozen":
        return foresight.teacher is not None
    encoder = foresight.encoder
    if not foresight.uses_encoder or encoder.weights == "random":
        return False
    return encoder.name != "masked_tokens" or encoder.weights is not None


# ---- at equal cost


def at_equal_cost(results: Results, axis: str) -> Results:
    """Returns one evaluation for each cell: there, where it has spent what its baseline spent in all.

    `axis` is an entry of AXES. Metrics are interpolated between evaluations: linearly in the cost,
    and for Fréchet distances in the logarithm of the metric. A cell that had spent more before its
    first evaluation has no value. One that ended with less is taken at its end.
    """
    # 1. The budgets: what the baseline of each seed spent up to the end. All records are placed at
    #    that evaluation, where a table finds them.
    baseline = [record for record in results.records if record["arm"] == results.baseline]
    if not baseline:
        return replace(results, records=[])
    last = max(baseline, key=lambda record: record["step"])
    place = {"step": last["step"], "epoch": last["epoch"]}
    ends = [record for record in baseline if record["step"] == last["step"]]
    budgets = {record["seed"]: spent(record, axis) for record in ends}
    # 2. Each cell at its budget.
    cells: dict[tuple[str, int], list[Record]] = {}
    for record in results.records:
        cells.setdefault((record["arm"], record["seed"]), []).append(record)
    found = []
    for (_, seed), records in cells.items():
        budget = budgets.get(seed)
        reached = None if budget is None else _at_cost(records, axis, budget)
        if reached is not None:
            found.append(reached | {"spent_at": reached["epoch"]} | place)
    # What was registered decides at equal epochs only.
    return replace(results, records=found, registered={})


def _at_cost(records: list[Record], axis: str, budget: float) -> Record | None:
    """Returns the record of a cell at this cost, or None if it had none yet."""
    costs = [spent(record, axis) for record in records]
    known = [(cost, record) for cost, record in zip(costs, records, strict=True) if cost is not None]
    known.sort(key=lambda pair: pair[0])
    if not known or budget < known[0][0] * (1 - 1e-9):
        return None
    if budget >= known[-1][0] * (1 - 1e-9):  # rounding of the costs
        return known[-1][1]
    for (low, before), (high, after) in pairwise(known):
        if budget < high:
            return _between(before, after, (budget - low) / (high - low))
    raise AssertionError("the budget lies between the first cost and the last")


def _between(before: Record, after: Record, share: float) -> Record:
    """Returns the record that lies this share of the way from one evaluation to the next."""

    def mean(a: float, b: float) -> float:
        return a + share * (b - a)

    metrics = {}
    for name in before["metrics"].keys() & after["metrics"].keys():
        metrics[name] = interpolated(name, before["metrics"][name], after["metrics"][name], mean)
    # In the order of the metrics, which is that of a table's columns.
    ordered = {name: metrics[name] for name in after["metrics"] if name in metrics}
    costs = {}
    for name in ("epoch", *COSTS):
        both = (before[name], after[name])
        costs[name] = None if None in both else mean(*both)
    return after | costs | {"metrics": ordered}


def interpolated(
    name: str, before: float | None, after: float | None, mean: Callable[[float, float], float]
) -> float | None:
    """Returns a metric between two evaluations. `mean` weighs them."""
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return None
    if name == SOLVED:  # 1 or 0, with nothing between
        return before
    if is_distance(name) and before > 0 and after > 0:
        return math.exp(mean(math.log(before), math.log(after)))
    return mean(before, after)


def equal_cost_notes(results: Results, axis: str) -> list[str]:
    """Returns sentences for below a table of `at_equal_cost(results, axis)`, which `results` are."""
    what = AXES[axis][1].replace(" (s)", "")
    reached = []
    for arm in results.arms:
        epochs = [record["spent_at"] for record in results.records if record["arm"] == arm]
        if epochs:
            reached.append(f"{arm} {sum(epochs) / len(epochs):.3g}")
        elif results.seeds(arm):
            reached.append(f"{arm} none")
    return [
        f"At equal cost: each run at the point where it had spent the {what} that the {results.baseline} "
        "of its seed spent in all, interpolated between evaluations. Epochs there (mean; none: no "
        f"evaluation before, or a cost that is not known): {', '.join(reached)}.",
        "A learning rate that is annealed to the end of the training is cut short by that: an arm that "
        "costs more per epoch would do better here with a schedule of its own length.",
    ]
