"""The correlation of diagnostics with the gain: by hand, and on simulated sweeps whose answer is known."""

import math

import correlation
import numpy as np
import pytest
from correlation import correlate, exchanged_p, least_p, pearson, resampled, within_arms


def test_pearson_and_what_has_no_spread():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(x, 2 * x + 1) == pytest.approx(1)
    assert pearson(x, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert math.isnan(pearson(x, np.ones(4)))


def test_the_baseline_changes_no_correlation():
    generator = np.random.default_rng(0)
    values, gains = generator.normal(size=(2, 5, 3))
    base_values, base_gains = 10 * generator.normal(size=(2, 3))
    assert pearson((values - base_values).mean(1), (gains - base_gains).mean(1)) == pytest.approx(
        pearson(values.mean(1), gains.mean(1))
    )
    r, interval = within_arms(values - base_values, gains - base_gains)
    assert (r, interval) == (
        pytest.approx(within_arms(values, gains)[0]),
        pytest.approx(within_arms(values, gains)[1]),
    )


def test_p_counts_the_orders_of_the_arms():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert exchanged_p(x, x) == pytest.approx(2 / 24), "that order and its mirror image"
    assert (
        least_p(4) == pytest.approx(1 / 24) == exchanged_p(np.array([0, 1, 2, 10]), np.array([0, 1, 3, 20]))
    )
    assert exchanged_p(x, np.ones(4)) == 1
    many = np.arange(12.0)
    assert exchanged_p(many, many) == pytest.approx(least_p(12)) == 1 / 5040


@pytest.mark.parametrize(("lone", "expected"), [([10, 11, 13], "abcde"), ([13], "abcd")])
def test_an_arm_that_shares_no_seeds_is_left_out(monkeypatch, lone, expected):
    seeds = {arm: lone if arm == "e" else [10, 11, 12] for arm in "abcde"}
    generator = np.random.default_rng(0)

    def values(arm, *_):
        return {seed: generator.normal() for seed in seeds[arm]}

    monkeypatch.setattr(correlation, "changes_of", values)
    monkeypatch.setattr(correlation, "gains_of", values)
    found = correlate("eabcd", "spatial", "lds", "FD-digits")
    assert sorted(found.arms) == list(expected)
    assert found.seeds == sorted(set.intersection(*(set(seeds[arm]) for arm in found.arms)))
    assert correlate("abc", "spatial", "lds", "FD-digits") is None


def test_a_run_that_is_better_for_its_arm_is_seen_within_arms_only():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(6, 8))
    arms = np.array([0, 1, 2, 2, 1, 0.0])[:, None]
    changes = noise + 100 * arms
    gains = -noise + 100 * np.array([0, 2, 1, 1, 2, 0.0])[:, None]
    r, (low, high) = within_arms(changes, gains)
    assert r == pytest.approx(-1)
    changes = changes + generator.normal(size=(6, 8))
    r, (low, high) = within_arms(changes, gains)
    assert low < r < high < 0
    assert float(pearson(changes.mean(1), gains.mean(1))) > 0.3


def simulated(generator, arms, seeds, rho, noise):
    """Changes of A arms in S seeds, whose true effects have a correlation of rho, with a shared baseline."""
    effects = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=arms).T[..., None]
    runs = noise * generator.normal(size=(2, arms, seeds))
    return effects + runs - noise * generator.normal(size=(2, 1, seeds))


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_intervals_hold_the_truth_and_p_is_a_probability(rho):
    generator = np.random.default_rng(1)
    n = 120
    held = found = inner = 0
    for _ in range(n):
        changes, gains = simulated(generator, 6, 6, rho, 0.7)
        low, high = resampled(changes, gains)
        held += low <= rho <= high
        found += exchanged_p(changes.mean(1), gains.mean(1)) < 0.05
        low, high = within_arms(changes, gains)[1]
        inner += low <= 0 <= high
    # 3 standard errors of 95 % in 120 draws are 6 %; the bootstrap may be too wide.
    assert held >= 0.89 * n
    assert 0.89 * n <= inner <= n
    if rho == 0:
        assert found <= 0.11 * n
