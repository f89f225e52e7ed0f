"""The spread of a panel, its parts, and what is read off them."""

import math

import numpy as np
import pytest

from mirai_bench.config.load import load_run
from mirai_bench.results.noise import (
    TOGETHER,
    deviation_of,
    growth,
    growth_of,
    noise_floor,
    read_panel,
    spread_of,
)


def panel(between, within, trainings, samplings, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for training in range(trainings):
        center = 10 + between * rng.standard_normal()
        for _ in range(samplings):
            value = center + within * rng.standard_normal()
            records.append({"source": TOGETHER, "training": training, "metrics": {"FD": value}})
    return records


def test_a_panel_computed_by_hand():
    """Groups (1, 3) and (5, 7): means 2 and 6 vary by 8, within by 2, so between by 8 - 2 / 2 = 7."""
    values = {0: (1.0, 3.0), 1: (5.0, 7.0)}
    records = [
        {"source": TOGETHER, "training": training, "metrics": {"FD": value}}
        for training, pair in values.items()
        for value in pair
    ]
    records.append({"source": "init", "training": 0, "metrics": {"FD": 100.0}})  # another source
    spread = spread_of(records, TOGETHER, "FD")
    assert (spread.trainings, spread.samplings, spread.mean) == (2, 2, 4.0)
    assert spread.within == pytest.approx(math.sqrt(2)) and spread.between == pytest.approx(math.sqrt(7))
    assert spread.single == pytest.approx(3.0) and spread.cov == pytest.approx(0.75)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.5), (0.3, 1.0), (0.0, 1.0)])
def test_the_parts_are_those_that_were_put_in(between, within):
    """On average over many panels of ten trainings and five evaluations."""
    spreads = [spread_of(panel(between, within, 10, 5, seed), TOGETHER, "FD") for seed in range(400)]
    assert np.mean([s.within**2 for s in spreads]) == pytest.approx(within**2, rel=0.05)
    # An estimate below 0 is set to 0, which makes a small variance come out larger.
    slack = 0.05 if between < within else 0.0
    assert np.mean([s.between**2 for s in spreads]) == pytest.approx(between**2, rel=0.1, abs=slack)


def test_noise_alone_exceeds_the_floor_in_five_per_cent_of_cases():
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 20_000, 6)).mean(-1)
    share = (np.abs(ours - theirs) > noise_floor(1.0, 6)).mean()
    assert share == pytest.approx(0.05, abs=0.005)
    assert noise_floor(2.0, 24) == pytest.approx(1.959964 * math.sqrt(2) * 2 / math.sqrt(24))


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_how_the_noise_grows_with_the_mean(exponent):
    points = [(mean, 0.1 * mean**exponent) for mean in (1.0, 2.0, 5.0, 9.0)]
    assert growth(points) == pytest.approx(exponent, abs=1e-9)
    assert growth(points[:2]) is None and growth([(1.0, 0.0)] * 5) is None


def test_growth_is_read_off_the_evaluations_along_the_trainings():
    rng = np.random.default_rng(0)
    records = [
        {"epoch": epoch, "metrics": {"FD": level * (1 + 0.1 * z)}}
        for epoch, level in ((1, 100.0), (2, 30.0), (3, 10.0), (4, 3.0))
        for z in rng.standard_normal(50)
    ]
    assert growth_of(records, "FD") == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("profile", "metric"), [("digits", "FD-digits"), ("cifar10_cpu", "FD-cifar10")])
def test_the_panel_of_a_profile_is_that_of_its_recipe(profile, metric):
    """A panel that was written before a field existed is still that of a profile that does not set it."""
    panel = read_panel(profile)
    config = load_run(profile).model_dump(mode="json")
    deviation = deviation_of(panel, config, metric)
    assert deviation is not None and 0 < deviation < 0.3
    assert deviation_of(panel, config | {"train": config["train"] | {"lr": 0.1}}, metric) is None
    assert deviation_of(panel, config | {"data": config["data"] | {"subset": 100}}, metric) is None
