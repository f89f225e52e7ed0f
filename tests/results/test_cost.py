"""One-off costs, and tables at equal cost."""

import math
from dataclasses import replace

import pytest

from mirai_bench.results.cost import (
    at_equal_cost,
    equal_cost_notes,
    one_off,
    one_off_notes,
    spent,
    with_one_off,
    without_one_off,
)
from mirai_bench.results.table import build_table

FLOPS = 1e12  # of an epoch of the frozen baseline


def with_teacher(results, arm, once):
    """Returns the results with a teacher of this cost in one arm."""
    records = []
    for record in results.records:
        cost = once if record["arm"] == arm else 0.0
        records.append(record | {"one_off_flops": cost, "one_off_seconds": cost and cost / FLOPS})
    return replace(results, records=records)


def test_the_teacher_is_in_the_costs_by_default(frozen):
    """internal-2d costs 1.50 of the baseline per epoch, of 12."""
    results = with_teacher(frozen, "internal-2d", 2 * 12 * FLOPS)

    def row_of(results):
        return build_table(results).rows[frozen.arms.index("internal-2d")]

    assert row_of(results).flops.mean == pytest.approx(3.5)
    assert row_of(with_one_off(results)).flops.mean == pytest.approx(3.5), "and counts once"
    assert row_of(without_one_off(results)).flops.mean == pytest.approx(1.5)
    assert any(
        "one-off cost of the teacher of internal-2d, whole" in note for note in build_table(results).notes
    )
    assert not any("one-off" in note for note in build_table(frozen).notes)
    (note,) = one_off_notes(results, included=False)
    assert note.startswith("One-off costs are left out (--without-one-off)")


@pytest.mark.parametrize(
    "foresight, known",
    [
        ({"level": "none"}, True),
        ({"level": "internal", "source": "ema"}, True),
        ({"level": "internal", "source": "random"}, True),
        ({"level": "internal", "source": "frozen", "teacher": None}, False),
        ({"level": "internal", "source": "frozen", "teacher": "file"}, True),
        ({"level": "internal", "source": "encoder", "encoder": {"name": "masked_tokens"}}, False),
        ({"level": "internal", "source": "encoder", "encoder": {"name": "dinov2_b", "cache": True}}, False),
        ({"level": "internal", "source": "encoder", "encoder": {"name": "dinov2_b", "cache": False}}, True),
        ({"level": "internal", "source": "shuffled", "shuffled_of": "ema"}, True),
    ],
)
def test_records_that_are_older_than_the_field(frozen, foresight, known):
    record = frozen.records[0]
    record["run"] = record["run"] | {"config": {"foresight": foresight}}
    assert one_off(record, "train_flops") == (0.0 if known else None)
    assert (spent(record, "flops") is None) == (not known)
    assert spent(record, "epochs") == record["epoch"]
    assert one_off(record | {"one_off_flops": 3.0}, "train_flops") == 3.0


def test_weights_from_elsewhere_are_named(frozen):
    foresight = {"level": "internal", "source": "encoder", "encoder": {"name": "dinov2_b", "cache": False}}
    frozen.records[0]["run"]["config"] = {"foresight": foresight}
    (note,) = one_off_notes(frozen)
    assert note.startswith("The weights of the teacher of baseline come from elsewhere")
    frozen.records[0]["run"]["config"]["foresight"]["encoder"]["weights"] = "random"
    assert one_off_notes(frozen) == []


def test_equal_flops_by_hand(frozen):
    """internal-2d costs 1.5 per epoch: its 12 epochs' worth of baseline is at its epoch 8."""
    results = at_equal_cost(frozen, "flops")
    baseline = {record["seed"]: record for record in results.records if record["arm"] == "baseline"}
    ours = {record["seed"]: record for record in results.records if record["arm"] == "internal-2d"}
    assert {record["spent_at"] for record in ours.values()} == {8.0}
    at_8 = {r["seed"]: r for r in frozen.records if r["arm"] == "internal-2d" and r["epoch"] == 8}
    assert all(ours[seed]["metrics"]["FD-digits"] == at_8[seed]["metrics"]["FD-digits"] for seed in ours)
    assert all(baseline[s]["metrics"]["FD-digits"] < 5.5 for s in baseline), "its last values"
    table = build_table(results)
    row = table.rows[frozen.arms.index("internal-2d")]
    assert row.flops.mean == pytest.approx(1)
    notes = equal_cost_notes(results, "flops")
    assert "internal-2d 8" in notes[0] and "pending none" in notes[0] and "annealed" in notes[1]


def test_values_between_evaluations(frozen):
    """With a teacher of 3 epochs internal-2d is at epoch 6, half-way from epoch 4 to epoch 8."""
    results = at_equal_cost(with_teacher(frozen, "internal-2d", 3 * FLOPS), "flops")
    (record,) = [r for r in results.records if (r["arm"], r["seed"]) == ("internal-2d", 0)]
    assert record["spent_at"] == pytest.approx(6)
    two = {r["epoch"]: r["metrics"] for r in frozen.records if (r["arm"], r["seed"]) == ("internal-2d", 0)}
    assert record["metrics"]["FD-digits"] == pytest.approx(
        math.sqrt(two[4]["FD-digits"] * two[8]["FD-digits"])
    )
    assert record["metrics"]["precision"] == pytest.approx((two[4]["precision"] + two[8]["precision"]) / 2)
    assert build_table(results).rows[2].flops.mean == pytest.approx(1)


def test_a_teacher_that_costs_more_than_the_baseline_leaves_no_value(frozen):
    results = at_equal_cost(with_teacher(frozen, "internal-2d", 12 * FLOPS), "flops")
    assert not [record for record in results.records if record["arm"] == "internal-2d"]
    assert "internal-2d none" in equal_cost_notes(results, "flops")[0]
    unknown = at_equal_cost(with_teacher(frozen, "internal-2d", None), "flops")
    assert not [record for record in unknown.records if record["arm"] == "internal-2d"]


def test_equal_epochs_are_the_last_evaluation(frozen):
    results = at_equal_cost(frozen, "epochs")
    assert build_table(results).rows[2].values == build_table(frozen).rows[2].values


def test_an_outcome_is_not_interpolated(frozen):
    for record in frozen.records:
        record["metrics"] = {"solved": float(record["epoch"] >= 8), "FD-digits": 1.0}
    results = at_equal_cost(with_teacher(frozen, "internal-2d", 3 * FLOPS), "flops")
    assert {r["metrics"]["solved"] for r in results.records if r["arm"] == "internal-2d"} == {0.0}


def test_without_a_baseline_there_is_no_equal_cost(frozen):
    alone = [record for record in frozen.records if record["arm"] != "baseline"]
    assert at_equal_cost(replace(frozen, records=alone), "flops").records == []
