"""Targets that are fixed beforehand, and the time to reach them."""

from dataclasses import replace

import fd_targets
import numpy as np
import plot_convergence
import pytest
import yaml

from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.stats import t_interval
from mirai_bench.utils.errors import UserError
from tests.support.paths import RECORDS, ROOT

STAIRCASE = ROOT / "reports" / "data" / "controls_staircase.jsonl"


def test_first_reach_by_hand():
    curve = [(2.0, 9.0), (4.0, 7.0), (8.0, 5.0)]
    assert fd_targets.first_reach(curve, 6.0, "heldout_ntp") == (6.0, False)
    assert fd_targets.first_reach(curve, 5.0, "heldout_ntp") == (8.0, False)
    assert fd_targets.first_reach(curve, 9.5, "heldout_ntp") == (2.0, True)
    assert fd_targets.first_reach(curve, 4.9, "heldout_ntp") is None
    share = np.log(7 / 6) / np.log(7 / 5)
    assert fd_targets.first_reach(curve, 6.0, "FD-x").x == pytest.approx(4 + 4 * share)
    rising = [(x, 10 - y) for x, y in curve]
    assert fd_targets.first_reach(rising, 4.0, "recall") == (6.0, False)


def test_the_target_is_the_median_of_the_baseline(frozen):
    target = fd_targets.target_of(frozen, "FD-digits", ["file"])
    assert (target.value, target.seeds, target.epoch) == (5.2, [0, 1, 2], 12.0)
    with pytest.raises(UserError, match="Unknown metric 'FD'"):
        fd_targets.target_of(frozen, "FD", [])
    with pytest.raises(UserError, match="no record of its baseline"):
        fd_targets.target_of(replace(frozen, records=[]), "FD-digits", [])


def test_a_baseline_without_a_finite_value_gives_no_target(frozen):
    for record in frozen.records:
        record["metrics"]["FD-digits"] = float("nan")
    with pytest.raises(UserError, match=r"FD-digits of its baseline .* no finite value .* epoch 12"):
        fd_targets.target_of(frozen, "FD-digits", [])


def test_a_target_is_fixed_once(tmp_path, capsys):
    words = ["--records", str(RECORDS), "--out", str(tmp_path)]
    assert fd_targets.command(words) == 0
    assert "FD-digits 5.2 (seeds 0, 1, 2)" in capsys.readouterr().out
    with pytest.raises(UserError, match="fixed beforehand"):
        fd_targets.command(words)
    assert fd_targets.command([*words, "--metric", "recall"]) == 0
    assert fd_targets.command([*words, "--replace"]) == 0
    known = yaml.safe_load((tmp_path / "fd_targets.yaml").read_text())["digits"]
    assert set(known) == {"FD-digits", "recall"}


def test_a_target_of_another_protocol_or_profile_does_not_hold(frozen, tmp_path):
    path = tmp_path / "targets.yaml"
    target = fd_targets.target_of(frozen, "FD-digits", [])
    fd_targets.write_target(frozen, "FD-digits", target, path, replace=False)
    assert fd_targets.read_target(frozen, "FD-digits", path) == target
    assert fd_targets.read_target(frozen, "recall", path) is None
    assert fd_targets.read_target(replace(frozen, profile="cifar10"), "FD-digits", path) is None
    frozen.records[0]["run"]["protocol_digest"] = "another"
    assert fd_targets.read_target(frozen, "FD-digits", path) is None
    assert fd_targets.read_target(frozen, "FD-digits", tmp_path / "absent.yaml") is None


def test_shipped_targets_are_what_their_records_say():
    for profile, metrics in yaml.safe_load(fd_targets.TARGETS.read_text()).items():
        for metric, fields in metrics.items():
            (results,) = read_jsonl([ROOT / file for file in fields["records"]])
            assert results.profile == profile
            assert vars(fd_targets.target_of(results, metric, fields["records"])) == fields


def test_a_seed_that_never_reaches_the_target_is_not_dropped(frozen):
    """The baseline reaches 5.2 in two of three seeds; output-1d never does, in either of its two."""
    baseline = fd_targets.time_to_target(frozen, "baseline", "FD-digits", "epochs", 5.2)
    assert (baseline.n, baseline.reached, baseline.ratio, baseline.p) == (3, 2, 1.0, 1.0)
    never = fd_targets.time_to_target(frozen, "output-1d", "FD-digits", "epochs", 5.2)
    assert (never.n, never.reached, never.time) == (2, 0, pytest.approx(12))
    assert never.ratio <= 1
    nobody = fd_targets.time_to_target(frozen, "output-1d", "FD-digits", "epochs", 0.1)
    assert (nobody.reached, nobody.ratio, nobody.low, nobody.high, nobody.p) == (0, 1, 1, 1, 1)
    assert fd_targets.time_to_target(frozen, "pending", "FD-digits", "epochs", 5.2) is None


def test_the_table_says_where_its_target_comes_from(frozen):
    target = fd_targets.target_of(frozen, "FD-digits", [])
    text = fd_targets.target_table(frozen, "FD-digits", target)
    assert "time to FD-digits 5.2" in text and "seeds of this very table" in text
    assert "| baseline | 2 of 3 | 11.7 | 1.00× |" in text and "| pending | — | — |" in text
    other = replace(target, seeds=[10, 11])
    assert "very table" not in fd_targets.target_table(frozen, "FD-digits", other, timing=False)


def test_the_convergence_script_prints_the_time_to_target(tmp_path, monkeypatch, capsys):
    words = ["--records", str(RECORDS), "--out", str(tmp_path)]
    assert fd_targets.command(words) == 0
    monkeypatch.setattr(fd_targets, "TARGETS", tmp_path / "fd_targets.yaml")
    monkeypatch.setattr(fd_targets.read_target, "__defaults__", (tmp_path / "fd_targets.yaml",))
    assert plot_convergence.command(words) == 0
    assert "time to FD-digits 5.2" in capsys.readouterr().out


def test_sign_test_by_hand():
    assert fd_targets.sign_test([1.0, 2.0, 3.0]) == 2 / 8
    assert fd_targets.sign_test([1.0, -1.0]) == 1.0
    assert fd_targets.sign_test([0.0, 0.0, 0.0]) == 1.0
    assert fd_targets.sign_test([1.0] * 20) < 0.001


@pytest.mark.parametrize("n", [3, 6])
def test_restricted_times_of_the_same_arm_cover_1(n):
    """10,000 sweeps in which half of the runs never reach the target."""
    generator = np.random.default_rng(0)
    draws = 10_000
    times = np.minimum(generator.lognormal(0, 0.3, (draws, 2, n)), 1)  # 1 is the whole training
    assert np.mean(times == 1) == pytest.approx(0.5, abs=0.01)
    d = np.log(times[:, 0] / times[:, 1])
    mean, error = d.mean(1), d.std(1, ddof=1) / np.sqrt(n)
    unit = np.arange(n, dtype=float)
    half = t_interval(unit).half / (unit.std(ddof=1) / np.sqrt(n))  # the quantile of t
    assert np.mean(np.abs(mean) <= half * error + 1e-12) >= 0.945
    assert np.mean(mean > 0) == pytest.approx(np.mean(mean < 0), abs=0.02)
    rejected = np.mean([fd_targets.sign_test(list(row)) <= 0.05 for row in d[:2000]])
    assert rejected <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
