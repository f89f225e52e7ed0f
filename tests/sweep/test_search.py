"""How the configurations of a search are compared. tests/sweep/test_run.py runs one on Ray."""

import logging
from types import SimpleNamespace

import pytest

from mirai_bench.config.checking import checked
from mirai_bench.config.sweep_file import Search
from mirai_bench.sweep import search_progress
from mirai_bench.sweep.search_table import best_of, compare
from mirai_bench.tracking.journal import Journal
from mirai_bench.utils.errors import UserError


def run(lr, seed, metric, heldout=1.0, seconds=50.0):
    return {
        "values": {"train.lr": lr},
        "seed": seed,
        "metric": metric,
        "heldout_ntp": heldout,
        "seconds": seconds,
    }


def search(**fields):
    space = {"train.lr": {"low": 1e-4, "high": 1e-2}}
    return checked(Search, {"arms": {"baseline": space}} | fields, "search")


def order(rows):
    return [row["values"]["train.lr"] for row in rows]


def test_the_best_mean_over_the_seeds_comes_first():
    """A Fréchet distance is averaged in the logarithm: 1 and 9 are better than 4 and 4."""
    runs = [run(1, 0, 4.0), run(1, 1, 4.0), run(2, 0, 1.0), run(2, 1, 9.0)]
    rows = compare(runs, search(metric="FD-digits"), lower=True)
    assert order(rows) == [2, 1] and [row["metric"] for row in rows] == pytest.approx([3.0, 4.0])
    rows = compare(runs, search(metric="heldout_ntp"), lower=True)
    assert [row["metric"] for row in rows] == pytest.approx([4.0, 5.0])
    assert order(compare(runs, search(metric="recall"), lower=False)) == [2, 1]


def test_what_does_not_count_is_after_what_counts_and_says_why():
    runs = [
        run(1, 0, 1.0, heldout=1.05),  # the best distance, with a loss that is too far from the best
        run(2, 0, 2.0, seconds=61.0),
        run(3, 0, 3.0),
        run(4, 0, None),
        run(5, 0, 4.0, heldout=1.009),
    ]
    rows = compare(runs, search(metric="FD-digits", slack=0.01, seconds=60), lower=True)
    assert order(rows) == [3, 5, 1, 2, 4]
    assert [row["excluded"] for row in rows] == [
        None,
        None,
        "heldout_ntp is 0.050 above the best",
        "61 s of training, more than 60",
        "not measured",
    ]


def test_without_a_heldout_loss_slack_lets_nothing_count():
    runs = [run(1, 0, 1.0, heldout=None), run(2, 0, 2.0)]
    rows = compare(runs, search(metric="FD-digits", slack=0.01), lower=True)
    assert order(rows) == [2, 1] and rows[1]["excluded"] == "heldout_ntp not measured"
    rows = compare(runs[:1], search(metric="FD-digits", slack=0.01), lower=True)
    assert rows[0]["excluded"] == "heldout_ntp not measured" and best_of(rows) is None


def test_a_configuration_of_which_one_run_failed_is_not_measured():
    rows = compare([run(1, 0, 1.0), run(1, 1, None), run(2, 0, 5.0), run(2, 1, 5.0)], search(), lower=True)
    assert order(rows) == [2, 1] and rows[1]["excluded"] == "not measured" and len(rows[1]["runs"]) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"seeds": [1, 1]}, "each seed once"), ({"seeds": [1, 2]}, "write scheduler: none")],
)
def test_wrong_seeds(fields, message):
    with pytest.raises(UserError, match=message):
        search(**fields)


def test_the_log_says_how_far_runs_are_and_which_have_ended(tmp_path, caplog, monkeypatch):
    config = SimpleNamespace(train=SimpleNamespace(epochs=4), run_path=tmp_path)
    plan = search(samples=2, seeds=[7], metric="FD-digits", scheduler="none")
    progress = search_progress.Progress(plan, "baseline", lambda values: config)
    values = {"seed": 7, "train.lr": 0.002}
    running = SimpleNamespace(status="RUNNING", config=values, last_result=None)
    pending = SimpleNamespace(status="PENDING", config=values, last_result=None)
    Journal(tmp_path / "journal.jsonl").append({"kind": "start", "time": 1.0, "step": 5, "epoch": 1.5})
    caplog.set_level(logging.INFO)
    progress.on_step_end(1, [running, pending])
    assert not caplog.messages, "a minute has not passed"
    monkeypatch.setattr(search_progress, "EVERY_SECONDS", 0.0)
    progress.on_step_end(2, [pending])
    progress.on_step_end(3, [running, pending])
    progress.on_trial_complete(4, [], SimpleNamespace(config=values, last_result={"FD-digits": 3.0}))
    progress.on_trial_error(5, [], running)
    assert caplog.messages == [
        "0/2 runs ended · train.lr=0.002, seed 7: epoch 1.5/4",
        "1/2 runs ended: train.lr=0.002, seed 7: FD-digits 3",
        "2/2 runs ended: train.lr=0.002, seed 7: nothing was measured",
    ]
