"""What the paper's single runs can show: z and intervals by hand, and the committed report.

After a wanted change of the claims, the paper's values or the noise:

    python analysis/single_runs.py --out reports
"""

import math

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def single_runs(monkeypatch):
    """The script, which shares modules with the others beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    import single_runs

    return single_runs


def test_the_committed_report_is_what_the_script_writes(single_runs, tmp_path, capsys):
    assert single_runs.command(["--out", str(tmp_path)]) == 0
    committed = (ROOT / "reports" / "paper_single_runs.md").read_text(encoding="utf-8")
    assert (tmp_path / "paper_single_runs.md").read_text(encoding="utf-8") == committed
    assert capsys.readouterr().out == committed + "\n"


def test_a_difference_by_hand(single_runs):
    pair = single_runs.Pair("it helps", "a against b", "B", 5.0, 5.25, 80)
    assert pair.z(0.01) == pytest.approx(math.log(1.05) / (math.sqrt(2) * 0.01))
    assert single_runs.percent(pair.difference) == "−4.8 %"
    text, shown = single_runs.table_of([pair], (0.01, 0.005), ["claim", "arms"])
    assert shown == 1 and "| 3.4 | 6.9 | \\<0.001 | shown |" in text
    # Of many as small as this one, none stands out; a claim has a side, and an arm against the baseline none.
    assert single_runs.table_of([pair._replace(ours=5.15)] * 10, (0.01, 0.005), ["claim"])[1] == 0
    other_way = pair._replace(ours=5.5)
    assert "the other way round" in single_runs.table_of([other_way], (0.01, 0.005), ["claim"])[0]
    assert "shown" in single_runs.table_of([other_way], (0.01, 0.005), ["arms"])[0]


def test_what_is_compared(single_runs):
    claim = {
        "claim": "x",
        "tests": [{"axis": "foresight_source", "better": "mirai-i-k1", "than": "mirai-e-k3"}],
    }
    found = [(pair.model, pair.epochs, pair.ours, pair.theirs) for pair in single_runs.pairs_of([claim])]
    assert found == [
        ("B", 80, 4.77, 5.22),
        ("B", 300, 4.34, 4.49),
        ("L", 300, 3.07, 3.29),
        ("XL", 300, 2.59, 2.76),
    ]
    large = {
        "axis": "foresight_source",
        "profile": "imagenet384_b",
        "better": "mirai-i-k1",
        "than": "baseline",
    }
    (pair,) = single_runs.pairs_of([{"claim": "x", "tests": [large, large]}])
    assert (pair.model, pair.ours, pair.theirs) == ("B-384", 4.91, 7.43)
    unknown = {"axis": "foresight_source", "better": "mirai-e-k1", "than": "baseline"}
    assert single_runs.pairs_of([{"claim": "x", "tests": [unknown]}]) == []


def test_the_epoch_of_a_value_on_the_baselines_curve(single_runs):
    curve = {10: 8.0, 20: 4.0, 40: 2.0}
    assert single_runs.baseline_epoch(curve, 4.0) == pytest.approx(20)
    assert single_runs.baseline_epoch(curve, math.sqrt(8.0)) == pytest.approx(20 * math.sqrt(2))
    assert single_runs.baseline_epoch(curve, 1.9) == math.inf


def test_the_papers_speedup_may_be_luck(single_runs):
    claim = {"claim": "fast", "tests": [{"axis": "foresight_source", "arm": "mirai-i-k1", "speedup": 10}]}
    rows = single_runs.speedups_of([claim], 0.0132).splitlines()
    assert "| fast | 10× | 5.25 @40 against 5.23 @400 | 9.5 | 6.5 to ≥ 10.0 |" in rows
