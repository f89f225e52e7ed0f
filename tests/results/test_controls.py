"""Runs that solve a planted task are counted, whatever arms a sweep has."""

from dataclasses import replace

from mirai_bench.results.controls import Count, solved_counts
from mirai_bench.results.table import build_table


def test_a_sweep_without_its_baseline_is_counted(frozen):
    records = [record | {"metrics": {"solved": 1.0, "heldout_ntp": 0.5}} for record in frozen.records]
    kept = [record for record in records if record["arm"] == "internal-2d"]
    results = replace(frozen, arms=["internal-2d"], records=kept)
    counts = solved_counts(results, results.last_step)
    assert counts["internal-2d"] == Count(3, 3, 1.0)
    assert (counts["baseline"].solved, counts["baseline"].n) == (0, 0)
    (note,) = [text for text in build_table(results).notes if "solved" in text]
    assert "baseline 0 of 0, internal-2d 3 of 3" in note
