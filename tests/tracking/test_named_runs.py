"""A run is found by the names of its sweep, arm and seed."""

import json

import pytest

from mirai_bench.tracking.named_runs import run_path
from mirai_bench.utils.errors import UserError


@pytest.fixture
def sweeps(here):
    """Two arms with two seeds of one profile, and the baseline of another one."""
    plan = {"axis": "small", "question": "?", "baseline": "baseline", "arms": ["baseline", "output"]}
    cells = [
        {"arm": arm, "seed": seed, "fingerprint": f"{arm}{seed}"}
        for seed in (0, 10)
        for arm in ("baseline", "output")
    ]
    (here / "runs" / "sweeps").mkdir(parents=True)
    plans = {"digits": cells, "other": [{"arm": "baseline", "seed": 0, "fingerprint": "other0"}]}
    for profile, of_profile in plans.items():
        content = json.dumps(plan | {"profile": profile, "cells": of_profile})
        (here / "runs" / "sweeps" / f"small-{profile}.json").write_text(content)
    return here


def test_a_run_is_named_by_axis_arm_and_seed(sweeps):
    assert str(run_path("small/output/10")) == "runs/output10"
    assert str(run_path("runs/small/baseline/10")) == "runs/baseline10", "the folder of runs may stand before"


@pytest.mark.parametrize("what", ["runs/baseline0", "a/folder/of/images", "images.npz", "no_sweep/output/10"])
def test_other_paths_stay_as_they_are(what, sweeps):
    assert str(run_path(what)) == what


def test_a_path_that_is_there_is_no_name(sweeps):
    (sweeps / "small" / "output" / "10").mkdir(parents=True)
    assert str(run_path("small/output/10")) == "small/output/10"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("small/outpt/10", "Did you mean 'output'"),
        ("small/output/1", "Unknown seed of small/output '1'"),
        ("small/baseline/0", "several profiles: write one of runs/baseline0, runs/other0"),
    ],
)
def test_names_that_mean_no_run_or_several(what, words, sweeps):
    with pytest.raises(UserError, match=words):
        run_path(what)
