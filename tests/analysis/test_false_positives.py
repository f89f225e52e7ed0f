"""The rate of false positives is the level where there is nothing, and grows where there is something."""

import json
from dataclasses import replace

import false_positives
import numpy as np
import pytest
from scipy import stats as scipy_stats

from mirai_bench.results.frozen import freeze
from mirai_bench.utils.errors import UserError
from tests.results.test_looks import results_of
from tests.support.paths import RECORDS, ROOT


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


# ---- which sweeps are controls


def control(frozen, path, values, cut=False, dataset="staircase"):
    """Writes the frozen records of a control with these values of `solved` by arm, and returns their file."""
    results = results_of(frozen, values)
    run = results.records[0]["run"]
    run = run | {"config": run["config"] | {"data": {"dataset": dataset, "staircase": {"cut": cut}}}}
    records = []
    for record in results.records:
        value = record["metrics"]["FD-digits"]
        records.append(record | {"metrics": {"heldout_ntp": value, "solved": value}, "run": dict(run)})
    fields = {"axis": "controls", "profile": path.stem, "registered": {}, "records": records}
    freeze(replace(results, **fields), path)
    return str(path)


def null(frozen, path, seeds):
    rng = np.random.default_rng(0)
    return control(frozen, path, {arm: list(rng.random(seeds)) for arm in ("baseline", "a")}, cut=True)


def written(out):
    return sorted(path.name for path in out.rglob("*") if path.is_file())


def test_only_planted_sweeps_are_controls(frozen, tmp_path, capsys):
    """An ordinary sweep among the files is left out, and is no positive control that nothing solves."""
    of_null = null(frozen, tmp_path / "null.jsonl", 12)
    out = tmp_path / "out"
    words = ["--out", str(out), "--records", of_null, str(RECORDS)]
    assert false_positives.command(words) == 0
    assert "injection_level (digits) is no control" in capsys.readouterr().err
    assert written(out) == ["false_positives_null.md"]
    of_help = control(frozen, tmp_path / "help.jsonl", {"baseline": [0.0] * 3, "a": [1.0] * 3})
    assert false_positives.command([*words, of_help]) == 0
    found = json.loads((out / "data" / "controls.json").read_text())
    assert (found["positive"]["solved"], found["positive"]["n"], found["null"]["sweeps"]) == (3, 3, 2)


def test_the_committed_controls_are_written_byte_for_byte(tmp_path):
    data = ROOT / "reports" / "data"
    files = [str(data / f"controls_{name}.jsonl") for name in ("staircase_cut", "staircase")]
    assert false_positives.command(["--records", *files, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "data" / "controls.json").read_bytes() == (data / "controls.json").read_bytes()


@pytest.mark.parametrize(
    ("null_seeds", "positive", "message"),
    [
        (0, None, "none of these sweeps is a null"),
        (4, {"baseline": [0.0], "a": [1.0]}, "has 4 seeds of which all arms have a value: .* takes 6"),
        (
            6,
            {"baseline": [0.0]},
            "has the arms baseline: give records of the baseline baseline and of another",
        ),
        (6, {"a": [0.0], "b": [1.0]}, "has the arms a, b: give records of the baseline baseline"),
        (6, {"baseline": [], "a": [1.0]}, "no run of baseline says whether it solved"),
        (6, {"baseline": [0.0], "a": []}, "no run of a says whether it solved"),
    ],
)
def test_what_is_no_whole_control_writes_nothing(null_seeds, positive, message, frozen, tmp_path):
    files = [null(frozen, tmp_path / "null.jsonl", null_seeds)] if null_seeds else [str(RECORDS)]
    if positive is not None:
        files.append(control(frozen, tmp_path / "help.jsonl", positive))
    with pytest.raises(UserError, match=message):
        false_positives.command(["--records", *files, "--out", str(tmp_path / "out")])
    assert not written(tmp_path / "out")


def test_two_positive_controls_are_refused(frozen, tmp_path):
    values = {"baseline": [0.0] * 3, "a": [1.0] * 3}
    files = [control(frozen, tmp_path / f"{name}.jsonl", values) for name in ("one", "two")]
    files.append(null(frozen, tmp_path / "null.jsonl", 6))
    with pytest.raises(UserError, match=r"not of controls \(one\), controls \(two\), controls \(null\)"):
        false_positives.command(["--records", *files, "--out", str(tmp_path / "out")])
