"""The rate of false positives is the level where there is nothing, and grows where there is something."""

from dataclasses import replace

import false_positives
import numpy as np
import pytest
from scipy import stats as scipy_stats

from tests.results.test_looks import results_of


def test_the_exact_interval_is_scipys():
    for found, n in ((0, 20), (3, 40), (20, 20)):
        wanted = scipy_stats.binomtest(found, n).proportion_ci(method="exact")
        assert false_positives.clopper_pearson(found, n) == pytest.approx((wanted.low, wanted.high))


def test_p_values_are_those_of_the_paired_t_test():
    x = np.random.default_rng(0).normal(size=(3, 2, 6))
    wanted = scipy_stats.ttest_1samp(x, 0, axis=-1).pvalue
    np.testing.assert_allclose(false_positives.p_values(x), wanted)
    assert false_positives.p_values(np.zeros((1, 4)))[0] == 1.0


def test_rates_of_noise_and_of_an_effect(frozen):
    rng = np.random.default_rng(1)
    base = rng.normal(0.5, 0.1, 120)
    nothing = {
        "baseline": list(base),
        "a": list(rng.normal(0.5, 0.1, 120)),
        "b": list(rng.normal(0.5, 0.1, 120)),
    }
    results = results_of(frozen, nothing)
    records = [
        record | {"metrics": {"heldout_ntp": record["metrics"]["FD-digits"]}} for record in results.records
    ]
    results = replace(results, records=records)
    pool = false_positives.differences_of(results)
    assert pool.shape == (2, 120)
    rows = [false_positives.rates(pool, rule, rng) for rule in false_positives.RULES]
    assert [row[1].split(" of ")[1] for row in rows] == ["40", "20", "10", "5", "20"]
    assert all(float(row[3].rstrip("%")) < 9 for row in rows)
    found = [false_positives.rates(pool + 1.0, rule, rng) for rule in false_positives.RULES]
    assert all(float(row[3].rstrip("%")) > 60 for row in found)
    text = false_positives.report(results)
    assert "A pool of 120 seeds of a, b and baseline" in text and "Clopper" in text
