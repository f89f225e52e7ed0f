"""The paper's values: every row of its tables of ablations is an arm, and stands beside the right one."""

import csv
from types import SimpleNamespace

import pytest
import yaml

from mirai_bench.results.paper import PAPER_VALUES, paper_setting, paper_values, read_paper
from tests.support.paths import ROOT

with open(PAPER_VALUES, encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
# The number of FIDs of each table, without those that are read off a figure or another table: the baseline
# (6.36, 5.34), Mirai-I (4.77, 4.34, 3.07) and Mirai-E (5.22, 4.49).
TABLES = {1: 7, 2: 7, 3: 7, 4: 4, 5: 2, 7: 4, 8: 1, 9: 2, 10: 1, 11: 3}


def of_profile(axis, profile, size="B"):
    """What a table of a sweep needs to know to find the paper's values."""
    records = [{"run": {"config": {"model": {"size": size}}}}]
    return SimpleNamespace(axis=axis, profile=profile, records=records)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_the_papers_tables_has_its_value(table):
    found = [row for row in ROWS if row["source"].startswith(f"table {table}:") and row["metric"] == "FID"]
    assert len(found) == TABLES[table]
    assert all(row["arms"] and row["mark"] == "L-html" for row in found)


def test_every_value_stands_beside_an_arm_that_a_sweep_has():
    for row in ROWS:
        assert row["arms"], row
        for name in row["arms"].split():
            axis, _, arm = name.partition("/")
            arms = yaml.safe_load((ROOT / "sweeps" / f"{axis}.yaml").read_text())["arms"]
            assert arm in arms, name


def test_an_arm_has_one_value_of_a_metric_an_epoch_and_a_size():
    seen = [(name, row["size"], row["epochs"], row["metric"]) for row in ROWS for name in row["arms"].split()]
    assert len(seen) == len(set(seen))


def test_arms_stand_beside_values_of_one_epoch():
    """The tables of λ have 300 epochs, the others 80; a baseline has both."""
    for axis, epochs in (("injection_level", 80), ("alignment_layer", 80), ("foresight_weight", 300)):
        values = paper_values(of_profile(axis, "digits"), 6)
        fids = [value for (_, metric), value in values.items() if metric == "FID"]
        assert {value.epochs for value in fids} == {epochs}, axis
    # Under the paper's own profile what counts is the epoch of the evaluation.
    assert paper_values(of_profile("foresight_weight", "imagenet256_b"), 40)["baseline", "FID"].value == 7.34


def test_values_of_larger_images_are_apart():
    large = of_profile("foresight_source", "imagenet384_b")
    assert paper_values(large, 80)["baseline", "FID"].value == 7.43
    assert paper_setting(large) == "LlamaGen-B on ImageNet at 384 pixels, evaluated at 256"
    assert paper_values(of_profile("foresight_source", "imagenet256_b"), 80)["baseline", "FID"].value == 6.36
    assert paper_setting(of_profile("x", "imagenet256_l", "L")) == "LlamaGen-L on ImageNet 256×256"
    assert {row["arm"] for row in read_paper("encoder", "L")} == {"baseline", "dinov2-b", "dinov2-l"}
