"""Planned looks keep the rate of false positives, and give the verdicts that the data deserve."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mirai_bench.results.frame import Results
from mirai_bench.results.looks import (
    BETTER,
    PILOT,
    SMALL,
    UNDECIDED,
    WORSE,
    decide,
    departures,
    levels,
    smallest_difference,
)
from mirai_bench.results.stats import holm, power, seeds_needed, smallest_shown
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import markdown

METRIC = "FD-digits"
DRAWS = 10_000


def results_of(frozen, values, **registered):
    """Returns results with these values by arm, a list over the seeds 10, 11, …, and planned looks."""
    base = frozen.records[0]
    records, cells = [], []
    for arm, of_seeds in values.items():
        for seed, value in enumerate(of_seeds, 10):
            cells.append({"arm": arm, "seed": seed, "fingerprint": "0" * 12, "status": "done"})
            records.append(base | {"arm": arm, "seed": seed, "metrics": {METRIC: value}})
    plan = {"primary": None, "looks": [3, 6], "smallest_effect": None, "families": {}, "exclusions": []}
    plan |= {"seeds": list(range(10, 34)), "arms": list(values), "hash": "abc"} | registered
    both = {"first": plan, "now": plan}
    return replace(frozen, arms=list(values), cells=cells, records=records, registered=both)


def decided(results):
    return decide(results, results.records[0]["step"], METRIC)


def words(results):
    return {arm: verdict.word for arm, verdict in decided(results).verdicts.items()}


def test_the_levels_of_the_looks_add_up():
    assert sum(levels([6, 12, 24])) == pytest.approx(0.05)
    # α ln(1 + (e - 1)/4), by hand.
    assert levels([6, 12, 24])[0] == pytest.approx(0.05 * math.log(1 + 1.718281828 / 4))
    assert levels([6]) == [pytest.approx(0.05)]


@pytest.mark.parametrize("arms", [1, 4])
def test_no_arm_is_found_where_there_is_nothing_but_with_the_rate_that_is_allowed(arms):
    """10,000 sweeps of arms that are the baseline: with three looks and Holm at most 5 % find something."""
    rng = np.random.default_rng(0)
    looks = [6, 12, 24]
    # Differences to one baseline are correlated by 1/2.
    values = rng.normal(size=(DRAWS, arms + 1, looks[-1]))
    differences = values[:, 1:] - values[:, :1]
    found = np.zeros(DRAWS, dtype=bool)
    for n, level in zip(looks, levels(looks), strict=True):
        part = differences[..., :n]
        statistic = part.mean(-1) / part.std(-1, ddof=1) * math.sqrt(n)
        p = 2 * scipy_stats.t.sf(np.abs(statistic), n - 1)
        found |= p.min(1) * arms < level  # Holm's first step
    rate = found.mean()
    error = math.sqrt(0.05 * 0.95 / DRAWS)
    assert rate < 0.05 + 3 * error
    assert rate > 0.02, "and the looks are not so careful that they find nothing"


def test_before_the_first_look_there_is_no_verdict(frozen):
    results = results_of(frozen, {"baseline": [5.0, 5.1], "arm": [2.0, 2.1]})
    assert words(results) == {"arm": PILOT}
    table = build_table(results)
    assert "A pilot: no verdict" in table.notes[0]
    assert "p: paired t-test" not in table.notes[0]
    assert table.rows[1].verdict == PILOT
    assert math.isnan(table.rows[1].differences[METRIC].p), "a pilot tests nothing"
    assert "| pilot |" in markdown(table)


def test_verdicts(frozen):
    rng = np.random.default_rng(1)
    base = 4 * np.exp(rng.normal(0, 0.1, 6))
    near = np.exp(rng.normal(0, 0.005, 6))
    values = {
        "baseline": base,
        "better": base * 0.5 * near,
        "worse": base * 2 * near[::-1],
        "same": base * near,
        "noise": base * np.exp(rng.normal(0, 0.3, 6)),
    }
    found = {arm: list(of_seeds) for arm, of_seeds in values.items()}
    results = results_of(frozen, found, smallest_effect=0.15)
    assert words(results) == {"better": BETTER, "worse": WORSE, "same": SMALL, "noise": UNDECIDED}
    decisions = decided(results)
    assert decisions.verdicts["better"].look == 1, "three seeds were enough, and a verdict stays"
    assert decisions.verdicts["noise"].look == 2
    assert decisions.undecided == ["noise"] and decisions.next_look is None
    text = markdown(build_table(results))
    assert "Look 2 of 2 (6 seeds)" in text and "Registered before the first run (abc)" in text
    assert "smallest effect of interest 15 %" in text


def test_a_decided_arm_needs_no_further_seeds(frozen):
    base = [4.0, 5.0, 6.0, 4.5, 5.5, 5.0]
    values = {"baseline": base, "better": [2.0, 2.51, 3.0], "noise": [4.0, 5.2, 5.9, 4.7, 5.2, 5.0]}
    decisions = decided(results_of(frozen, values))
    assert decisions.reached == 2
    assert decisions.verdicts["better"].word == BETTER and decisions.verdicts["better"].look == 1
    assert decisions.verdicts["noise"].look == 2


def test_a_missing_cell_holds_up_a_look_and_a_failed_one_does_not(frozen):
    values = {"baseline": [4.0, 5.0, 6.0], "arm": [2.0, 2.51]}
    results = results_of(frozen, values)
    cell = {"arm": "arm", "seed": 12, "fingerprint": "0" * 12}
    for status, reached in (("pending", 0), ("failed", 1)):
        known = replace(results, cells=[*results.cells, cell | {"status": status}])
        assert decided(known).reached == reached


def test_arms_that_a_command_left_out_count_in_their_family(frozen):
    """Which arms are trained must not make the tests of the others milder."""
    base = [4.0, 5.0, 6.0]
    values = {"baseline": base, "arm": [3.6, 4.35, 5.5], "other": base[::-1]}
    alone = results_of(frozen, values, looks=[3], families={"one": ["arm"], "two": ["other"]})
    p = decided(alone).verdicts["arm"].estimate.p
    assert decided(alone).family_size == {"arm": 1, "other": 1} and words(alone)["arm"] == BETTER
    arms = ["baseline", "arm", "other", "second", "third"]
    families = {"one": ["arm", "second", "third"], "two": ["other"]}
    registered = results_of(frozen, values, looks=[3], families=families, arms=arms)
    decisions = decided(registered)
    assert decisions.family_size == {"arm": 3, "other": 1}
    assert decisions.verdicts["arm"].estimate.p == pytest.approx(3 * p)
    assert decisions.verdicts["arm"].word == UNDECIDED and 0.05 / 3 < p < 0.05
    # Without named families all registered arms are one, and other metrics are corrected alike.
    whole = results_of(frozen, values, looks=[3], arms=arms)
    assert decided(whole).family_size == {"arm": 4, "other": 4}
    row = build_table(whole).rows[1]
    assert row.differences[METRIC].p == pytest.approx(4 * p)


def test_what_seeds_can_show_is_corrected_over_the_family(frozen):
    rng = np.random.default_rng(2)
    base = 4 * np.exp(rng.normal(0, 0.1, 6))
    names = ("a", "b", "c", "d")
    values = {"baseline": base} | {arm: base * np.exp(rng.normal(0, 0.1, 6)) for arm in names}
    found = {arm: list(of_seeds) for arm, of_seeds in values.items()}
    text = markdown(build_table(results_of(frozen, found, families={"one": ["a"], "two": ["b", "c"]})))
    assert "(corrected over 1); with 6 seeds a difference of " in text and "(corrected over 2). Seeds" in text
    assert "In no family that is tested, with intervals of 95 %: d." in text
    needed = text.partition("would need: ")[2].partition(".")[0].split(", ")
    assert [item.partition(" ")[0] for item in needed] == ["a", "b", "c"]


def test_a_family_that_was_added_later_is_at_its_own_look(frozen):
    base = [4.0, 5.0, 6.0, 4.5, 5.5, 5.0]
    noise = [4.0, 5.2, 5.9, 4.7, 5.2, 5.0]
    values = {"baseline": base, "early": noise, "added": noise[:3], "pilot": noise[:2]}
    apart = {"first": ["early"], "second": ["added"], "third": ["pilot"]}
    results = results_of(frozen, values, families=apart)
    missing = [("added", 13), ("pilot", 12)]
    pending = [
        {"arm": arm, "seed": seed, "fingerprint": "0" * 12, "status": "pending"} for arm, seed in missing
    ]
    results = replace(results, cells=[*results.cells, *pending])
    decisions = decided(results)
    assert decisions.reached_by == {"early": 2, "added": 1, "pilot": 0} and decisions.reached == 2
    assert {arm: verdict.look for arm, verdict in decisions.verdicts.items()} == decisions.reached_by
    assert decisions.next_look == (0, ["pilot"]), "the family that is least far goes on first"
    assert decisions.level("early") == decisions.level() != decisions.level("added")
    rows = {row.arm: row for row in build_table(results).rows}
    assert rows["early"].verdict == UNDECIDED and rows["added"].verdict == f"{UNDECIDED} (look 1)"
    assert rows["pilot"].verdict == PILOT and math.isnan(rows["pilot"].differences[METRIC].p)
    text = markdown(build_table(results))
    assert "Still at look 1 (3 seeds), at the level of" in text and ": added." in text
    assert "Still before the first look at 3 seeds, with intervals of 95 %: pilot." in text


def test_arms_are_corrected_within_their_family(frozen):
    base = [4.0, 5.0, 6.0, 4.5, 5.5, 5.0]
    values = {"baseline": base} | {name: [x * 0.93 for x in base] for name in "abc"}
    for name, shift in zip("abc", (0.0, 0.1, 0.2), strict=True):
        values[name] = [x + shift * (-1) ** i for i, x in enumerate(values[name])]
    together = decided(results_of(frozen, values))
    apart = decided(results_of(frozen, values, families={"one": ["b"], "two": ["c"]}))
    assert set(apart.verdicts) == {"b", "c"}, "an arm of no family is described"
    assert apart.verdicts["b"].estimate.p < together.verdicts["b"].estimate.p


def test_a_departure_from_what_was_registered_is_named(frozen):
    results = results_of(frozen, {"baseline": [5.0] * 6, "arm": [4.0, 4.1, 4.0, 4.2, 4.0, 4.1]})
    assert departures(results) == []
    now = results.registered["now"] | {"looks": [3, 5], "hash": "def"}
    changed = replace(results, registered={"first": results.registered["first"], "now": now})
    assert departures(changed) == ["looks was [3, 6] and is [3, 5]"]
    assert "Departures from it: looks was \\[3, 6] and is \\[3, 5]." in markdown(build_table(changed))


def test_departures_name_the_arms_and_families_that_came_and_went():
    first = {"arms": ["baseline", "a", "b"], "families": {"one": ["a", "b"]}, "hash": "x"}
    more = {"arms": ["baseline", "a", "c"], "families": {"one": ["a"], "two": ["c"]}, "hash": "y"}
    results = Results("axis", "digits", "?", "baseline", [], [], registered={"first": first, "now": more})
    assert departures(results) == [
        "arms added: c",
        "arms removed: b",
        "families added: one (a), two (c)",
        "families removed: one (a, b)",
    ]
    turned = first | {"arms": ["baseline", "b", "a"]}
    again = replace(results, registered={"first": first, "now": turned})
    assert departures(again) == ["arms reordered"]


def test_sizes_of_effects():
    assert smallest_difference(0.15, METRIC) == pytest.approx(-math.log(0.85))
    assert smallest_difference(0.01, "heldout_ntp") == 0.01


def test_power_is_that_of_a_simulation():
    """10,000 paired t-tests of six seeds, with a true effect of one standard deviation."""
    rng = np.random.default_rng(2)
    x = rng.normal(1.0, 1.0, (DRAWS, 6))
    p = scipy_stats.ttest_1samp(x, 0, axis=1).pvalue
    assert power(6, 1.0, 1.0, 0.05) == pytest.approx((p < 0.05).mean(), abs=0.02)
    assert power(6, smallest_shown(6, 1.0, 0.05), 1.0, 0.05) == pytest.approx(0.8)
    # A textbook value: effect of 0.5 standard deviations, two-sided 5 %, power 0.8: 34 pairs.
    assert seeds_needed(0.5, 1.0, 0.05) == 34
    assert seeds_needed(1e-4, 1.0, 0.05) is None
    assert smallest_shown(1, 1.0, 0.05) == math.inf


@pytest.mark.parametrize("n", [3, 6])
def test_intervals_cover_and_agree_with_permutations(n):
    """The t-interval of paired log differences covers the truth in 95 % of 10,000 draws.

    At n = 6 its p agrees with the exact test that flips the signs of the differences.
    """
    rng = np.random.default_rng(n)
    x = rng.normal(0.3, 1.0, (DRAWS, n))
    half = scipy_stats.t.ppf(0.975, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    assert (np.abs(x.mean(1) - 0.3) < half).mean() == pytest.approx(0.95, abs=0.007)
    if n == 6:
        signs = np.array(np.meshgrid(*[[-1, 1]] * n)).reshape(n, -1)  # (n, 2^n)
        null = x - 0.3
        flipped = np.abs(null[:2000] @ signs) / n
        exact = (flipped >= np.abs(null[:2000].mean(1))[:, None] - 1e-12).mean(1)
        assert (exact < 0.05).mean() == pytest.approx(0.05, abs=0.02)
        t = scipy_stats.ttest_1samp(null[:2000], 0, axis=1).pvalue
        assert np.corrcoef(exact, t)[0, 1] > 0.98


def test_holm_keeps_the_family_wise_error():
    """2,000 families of four arms, one of which is truly better: the others are found in at most 5 %."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(2000):
        x = rng.normal(size=(5, 12))
        differences = x[1:] - x[0]
        differences[0] -= 3
        p = scipy_stats.ttest_1samp(differences, 0, axis=1).pvalue
        wrong += any(value < 0.05 for value in holm(list(p))[1:])
    assert wrong / 2000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
