"""The speed-up against cases whose answer is known, and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import speedup

from mirai_bench.results.paper import read_paper

EPOCHS = np.array([1.0, 2, 4, 6, 8, 9, 10])


def results_of(frozen, pace, *, once=0.0, factor=1.0, seeds=4):
    """Returns a baseline, and an arm that is `pace` times as fast and costs `factor` per epoch."""
    run = frozen.records[0]["run"]
    records = []
    for seed in range(seeds):
        for arm, speed, cost in (("baseline", 1, 1), ("arm", pace, factor)):
            for step, epoch in enumerate(np.arange(0.25, 10.1, 0.25)):
                value = (20 + seed) * (epoch * speed) ** -0.7
                record = {"arm": arm, "seed": seed, "step": step, "epoch": epoch, "run": run}
                record |= {
                    "metrics": {"FD-x": value},
                    "train_flops": cost * epoch,
                    "train_seconds": cost * epoch,
                }
                record |= {"sample_seconds": 1.0, "evaluate_seconds": 1.0}
                one_off = once if arm == "arm" else 0.0
                records.append(record | {"one_off_flops": one_off, "one_off_seconds": one_off})
    cells = [{"arm": a, "seed": s, "status": "done"} for s in range(seeds) for a in ("baseline", "arm")]
    return replace(frozen, arms=["baseline", "arm"], cells=cells, records=records)


@pytest.mark.parametrize("pace", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("kind", speedup.KINDS)
def test_an_arm_that_is_so_many_times_as_fast(frozen, pace, kind):
    found = speedup.speedup(results_of(frozen, pace), "arm", "FD-x", "epochs", kind)
    assert (found.n, found.bound, found.reached) == (4, "", pace >= 1)
    assert [found.mean, found.low, found.high] == pytest.approx([pace] * 3, rel=0.01)


def test_exchanging_arm_and_baseline_inverts_the_speedup(frozen):
    both = {"arm": "internal-2d", "baseline": "baseline"}
    one = speedup.speedup(frozen, both["arm"], "FD-digits", "flops", "final")
    exchanged = replace(frozen, baseline=both["arm"])
    other = speedup.speedup(exchanged, "baseline", "FD-digits", "flops", "final")
    assert one.mean * other.mean == pytest.approx(1, rel=1e-6)
    assert one.low * other.high == pytest.approx(1, rel=1e-6)


def test_the_teacher_counts(frozen):
    """The case of mirai-i-k1: 1.40 per step, and 4.35 with its teacher, without any other effect."""
    results = results_of(frozen, 1.0, once=2.95 * 10, factor=1.40)
    found = speedup.speedup(results, "arm", "FD-x", "flops", "final")
    assert found.mean == pytest.approx(1 / 4.35, rel=0.001)
    epochs = speedup.speedup(results, "arm", "FD-x", "epochs", "final")
    assert epochs.mean == pytest.approx(1)


def test_the_baseline_against_itself_with_its_seeds_permuted_gives_1(frozen):
    records = []
    for record in frozen.records:
        if record["arm"] == "baseline":
            records += [record, record | {"arm": "arm", "seed": (record["seed"] + 1) % 3}]
    results = replace(frozen, arms=["baseline", "arm"], records=records)
    found = speedup.speedup(results, "arm", "FD-digits", "epochs", "final")
    assert found.mean == pytest.approx(1)
    assert found.low < 1 < found.high
    middle, high = speedup.null(results, "FD-digits", "epochs", "final")
    assert middle == pytest.approx(1, abs=0.005) and 1 < high < 1.3


def test_an_interval_without_an_end_says_so(frozen):
    """Two seeds that differ widely reject nothing."""
    for record in frozen.records:
        if record["arm"] == "output-1d":
            record["metrics"]["FD-digits"] *= 1 + record["seed"]
    found = speedup.speedup(frozen, "output-1d", "FD-digits", "epochs", "final")
    assert (found.n, found.low, found.high) == (2, 0, math.inf)
    assert str(found).endswith("[0, ∞]")
    assert (found.sure_low, found.sure_high) == (0, math.inf)


def test_one_seed_has_no_interval_and_decides_nothing(frozen):
    found = speedup.speedup(frozen, "odd_name<&>#1%|", "FD-digits", "epochs", "final")
    assert found.n == 1 and math.isnan(found.low)
    assert (found.sure_low, found.sure_high) == (0, math.inf)
    assert str(found).endswith("×")
    assert speedup.null(results_of(frozen, 1.0, seeds=1), "FD-x", "epochs", "final") is None


def test_reached_before_the_first_evaluation_is_a_lower_bound(frozen):
    for record in frozen.records:
        if record["arm"] == "internal-2d":
            record["metrics"] = {"FD-digits": 1.0}
    found = speedup.speedup(frozen, "internal-2d", "FD-digits", "epochs", "best")
    assert str(found).startswith("≥ 6.00×")
    assert found.sure_high == math.inf


def test_an_arm_that_never_gets_there(frozen):
    found = speedup.speedup(frozen, "output-1d", "FD-digits", "epochs", "final")
    assert not found.reached and found.mean < 1
    assert str(found).startswith("not reached, 0.")
    assert str(speedup.speedup(frozen, "pending", "FD-digits", "epochs", "final")) == "—"


def test_papers_own_points_give_its_speedups(frozen):
    """The paper's "10 times" and "5 times": LlamaGen-B needs 400 epochs for an FID of 5.23."""
    rows = [row for row in read_paper("foresight_source", "B") if row["metric"] == "FID"]
    base = frozen.records[0]
    records = []
    for row in rows:
        if row["arm"] in ("baseline", "mirai-i-k1", "mirai-e-k3"):
            own = {"arm": row["arm"], "seed": 0, "epoch": int(row["epochs"])}
            records.append(base | own | {"metrics": {"FID": float(row["value"])}})
    records.sort(key=lambda record: record["epoch"])
    results = replace(frozen, arms=["baseline", "mirai-i-k1", "mirai-e-k3"], records=records)
    found = {arm: speedup.speedup(results, arm, "FID", "epochs", "final") for arm in results.arms[1:]}
    assert found["mirai-i-k1"].mean == pytest.approx(9.6, abs=0.2)
    assert found["mirai-e-k3"].mean == pytest.approx(5.0, abs=0.1)


# ---- by simulation


def simulated(n, draws, pace, generator):
    """Returns log values (draws, n, evaluations) of a baseline and of an arm of this pace.

    Half of the noise is that of the seed, half that of each evaluation. Pairs share a quarter of the
    former. The s.d. of a value is 0.2, as on the digits.
    """
    shared = generator.normal(0, 0.07, (draws, n, 1))
    sides = []
    for speed in (1.0, pace):
        curve = np.log(20) - 0.7 * np.log(EPOCHS * speed)
        of_seed = generator.normal(0, 0.12, (draws, n, 1))
        sides.append(curve + shared + of_seed + generator.normal(0, 0.14, (draws, n, len(EPOCHS))))
    return sides


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("pace", [1.0, 2.0])
def test_the_interval_covers_and_the_estimate_is_not_biased(n, pace):
    """10,000 sweeps. In about half of them the arm never gets to the baseline's last value."""
    generator = np.random.default_rng(n)
    at = speedup.factors([EPOCHS], [EPOCHS])
    covered = above = not_reached = total = 0
    middles = []
    for _ in range(10):
        theirs, ours = simulated(n, 1000, pace, generator)
        # Interpolation is linear in the values, so that its weights do for all sweeps.
        weights = [differences_of_unit(at, i) for i in range(len(EPOCHS))]
        our_weights, their_weights = (np.array(part) for part in zip(*weights, strict=True))
        found = speedup.estimate(at, ours @ our_weights - theirs @ their_weights)
        covered += np.sum((found.low <= math.log(pace)) & (math.log(pace) <= found.high))
        above += np.sum(found.mean > math.log(pace))
        not_reached += np.sum((ours - theirs).mean(1)[:, -1] > 0)
        total += len(found.mean)
        middles.append(np.median(found.mean))
    assert covered / total >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / total)
    assert np.exp(np.mean(middles)) == pytest.approx(pace, rel=0.03)
    if pace == 1:
        assert above / total == pytest.approx(0.5, abs=0.015), "as often above 1 as below"
        assert not_reached / total == pytest.approx(0.5, abs=0.02)


def differences_of_unit(at, index):
    """Returns how much evaluation number `index` weighs in the values of the arm and the baseline."""
    unit = np.zeros(len(EPOCHS))
    unit[index] = 1
    nothing = (EPOCHS, np.zeros(len(EPOCHS)))
    ours = speedup.difference_at(at.logs, (EPOCHS, unit), nothing)
    return ours, -speedup.difference_at(at.logs, nothing, (EPOCHS, unit))
