"""How many trials fit on the nodes of a cluster, and what each of them asks for."""

import pytest
import ray

from mirai_bench.sweep.ray_tune import processes_per_node, resources, slots
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
