"""How many trials fit on the nodes of a cluster, what each of them asks for, and how they end."""

import json
import time
from dataclasses import replace

import pytest
import ray

from mirai_bench.config.load import load_run
from mirai_bench.model.cost import checkpoint_bytes
from mirai_bench.sweep.driver import Options
from mirai_bench.sweep.job import Job
from mirai_bench.sweep.ray_tune import grace_seconds, in_thread, processes_per_node, resources, slots
from mirai_bench.utils.errors import UserError


def nodes(monkeypatch, *sizes):
    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in sizes],
    )


@pytest.mark.parametrize(
    ("machine", "sizes", "fitting", "on_one_node"),
    [
        ({"cpus": 4, "gpus": 1}, [(16, 8)], 4, 4),
        ({"gpus": 0.25}, [(16, 2)], 8, 8),
        ({"workers": 8, "gpus": 8, "cpus": 16}, [(64, 8), (64, 8)], 2, 8),
        ({"workers": 8, "gpus": 8, "cpus": 16}, [(64, 4), (64, 4)], 1, 4),
        ({"workers": 2, "cpus": 2}, [(1, 0), (1, 0), (1, 0)], 1, 1),
        ({"cpus": 2}, [(3, 0), (9, 0)], 5, 4),
    ],
)
def test_trials_that_fit_are_counted_node_by_node(
    make_config, monkeypatch, machine, sizes, fitting, on_one_node
):
    nodes(monkeypatch, *sizes)
    machine = make_config(train={"batch_size": 64}, machine=machine).machine
    assert slots(machine, local=False) == fitting
    assert processes_per_node(machine, fitting) == on_one_node and processes_per_node(machine, 1) == min(
        on_one_node, machine.workers
    )


def test_what_does_not_fit_is_said(make_config, monkeypatch, capsys):
    nodes(monkeypatch, (2, 0))
    with pytest.raises(
        UserError,
        match=r"machine.cpus is 3 for each trial, but this machine has 2: write --set machine.cpus=2",
    ):
        slots(make_config(machine={"cpus": 3}).machine, local=True)
    nodes(monkeypatch, (2, 0), (2, 0))
    assert slots(make_config(machine={"cpus": 3}).machine, local=False) == 1
    assert "processes takes 3 CPU of one node, and at the moment 0 fit" in capsys.readouterr().err


def test_a_trial_that_waits_for_its_workers_holds_nothing_they_need(make_config):
    assert resources(make_config(machine={"cpus": 3, "gpus": 0.5}).machine) == {"cpu": 3, "gpu": 0.5}
    held = resources(make_config(machine={"workers": 2, "cpus": 2}).machine)
    assert held.get("cpu", 0) == held.get("gpu", 0) == 0


def test_an_empty_address_is_none(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert Options().cluster is None, "Ray starts on this machine, whose resources then are a limit"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert Options().cluster == "auto" and Options(address="head:6379").cluster == "head:6379"


# ---- how the trials end


@pytest.fixture
def job(tmp_path):
    job = Job.beside([], tmp_path, "small-small")
    job.begin()
    return job


def test_results_and_errors_come_out_of_the_thread(job):
    calls = []
    assert in_thread(lambda: ["result"], job, lambda: calls.append(1)) == ["result"]

    def fails(error):
        raise error

    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: fails(ZeroDivisionError()), job, lambda: None)
    with pytest.raises(UserError, match=r"Ray ended .the node is gone.: run the same command again"):
        in_thread(lambda: fails(ray.exceptions.RayError("the node is gone\nTraceback")), job, lambda: None)


def test_a_check_that_found_something_stops_the_trials_and_says_what(job):
    job.check_file.write_text(json.dumps({"wrong": ["no weights", "no data"]}))
    with pytest.raises(UserError, match="no weights\n  no data"):
        in_thread(lambda: [], job, lambda: None)


def test_the_time_to_leave_follows_the_size_of_the_checkpoints(job, monkeypatch):
    nodes(monkeypatch, (16, 8))
    small = load_run("digits")
    assert grace_seconds(job, small.machine) == 20, "nothing is trained"
    job = replace(job, configs=[small.model_dump(mode="json")])
    assert 20 < grace_seconds(job, small.machine) < 22
    large = load_run("imagenet256_xl", ["machine.gpus=8", "machine.workers=8"])
    job = replace(job, configs=[small.model_dump(mode="json"), large.model_dump(mode="json")])
    assert grace_seconds(job, large.machine) == pytest.approx(20 + checkpoint_bytes(large) / 100e6)
    alone = large.machine.model_copy(update={"gpus": 1, "workers": 1, "cpus": 2})
    assert grace_seconds(job, alone) == pytest.approx(20 + 8 * checkpoint_bytes(large) / 100e6)


def test_no_one_waits_for_cells_that_do_not_leave(job):
    job.stop_file.touch()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        in_thread(lambda: time.sleep(30), job, lambda: None, grace=0.5)
    assert time.monotonic() - began < 10


def test_a_stop_that_was_asked_for_is_an_interruption(job):
    job.stop_file.touch()
    with pytest.raises(KeyboardInterrupt):
        in_thread(lambda: [], job, lambda: None)
