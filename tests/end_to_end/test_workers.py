"""Cells of several processes, by Ray Train: on one node and on two, with a worker that is lost,
stopped, or out of memory."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mirai_bench.sweep import ray_train, trial
from mirai_bench.sweep.driver import WORKERS
from mirai_bench.sweep.job import Job
from mirai_bench.sweep.ray_session import session as ray_session
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.small_run import saved
from tests.support.small_sweeps import ARMS, SAVES, descendants, finish, is_trial, plan_at, start, state

TWO = {
    "machine": SAVES["machine"] | {"workers": 2, "cpus": 2},
    "train": {"epochs": 3, "batch_size": 50},
    "evaluation": {"at": [3]},
}


def ranks_below(pid):
    return [child for child, name in descendants(pid) if "RayTrainWorker" in name]


def starts_of(run_dir):
    return [line for line in read_journal(run_dir / "journal.jsonl") if line["kind"] == "start"]


def by_torchrun(config, runs):
    """The same run by two processes of torchrun → its folder."""
    config = config.model_copy(update={"machine": config.machine.model_copy(update={"runs": runs})})
    (runs.parent / "alone.json").write_text(config.model_dump_json())
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mirai_bench.train"]
    subprocess.run(
        [sys.executable, "-m", *words, str(runs.parent / "alone.json")], check=True, capture_output=True
    )
    return runs / config.fingerprint()


@pytest.mark.slow  # a cluster of three nodes on this machine
def test_a_cell_on_two_nodes_gives_what_torchrun_gives(sweep_file, tmp_path, trained_run):
    from ray.cluster_utils import Cluster

    file = sweep_file({"baseline": ARMS["baseline"]}, **TWO)
    (cell,) = plan_at(file).sweep.cells
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        raylets = [cluster.add_node(num_cpus=1).all_processes["raylet"][0].process.pid for _ in range(2)]
        driver, at_most = start(file, "--address", cluster.address), [0, 0]
        while driver.poll() is None:
            at_most = [max(seen, len(ranks_below(pid))) for seen, pid in zip(at_most, raylets, strict=True)]
            time.sleep(0.2)
        code, out, err = finish(driver)
        assert code == 0 and "baseline" in out, err
    finally:
        cluster.shutdown()
    assert at_most == [1, 1], "one rank on each node"
    assert starts_of(cell.run_path)[0]["workers"] == 2
    assert state(cell.run_path) == state(by_torchrun(cell.config, tmp_path / "alone")), "bit for bit"


@pytest.mark.slow  # a start of Ray, and of two groups of workers in it
def test_cells_of_two_processes_take_turns_where_only_one_fits(sweep_file, trained_run):
    small = {"machine": TWO["machine"] | {"log_every": 5}}
    file = sweep_file({"baseline": ARMS["baseline"]}, seeds=(0, 1), **small)
    code, out, err = finish(start(file))
    assert code == 0 and "baseline" in out and "1 at a time" in err, err
    for cell in plan_at(file).sweep.cells:
        lines = list(read_journal(cell.run_path / "journal.jsonl"))
        assert lines[0]["workers"] == 2 and [line["kind"] for line in lines].count("end") == 1


@pytest.mark.slow  # two groups of workers start
@pytest.mark.parametrize("killed", ["a rank", "the trial above the ranks"])
def test_a_kill_changes_nothing(sweep_file, tmp_path, trained_run, killed):
    file = sweep_file({"baseline": ARMS["baseline"]}, **TWO)
    (cell,) = plan_at(file).sweep.cells
    driver, ranks = start(file, "--retries", "1"), []
    while len(saved(cell.run_path)) < 2 or not ranks:
        ranks = ranks_below(driver.pid)
        time.sleep(0.1)
        assert driver.poll() is None, finish(driver)[2]
    trials = [pid for pid, name in descendants(driver.pid) if is_trial(name)]
    os.kill(max(ranks if killed == "a rank" else trials), signal.SIGKILL)
    code, _, err = finish(driver)
    assert code == 0, err
    first, second = starts_of(cell.run_path)
    assert first["step"] == 0 < second["step"]
    assert state(cell.run_path) == state(by_torchrun(cell.config, tmp_path / "alone"))


@pytest.mark.slow  # a start of Ray
def test_asked_to_stop_all_ranks_save_and_leave(sweep_file, trained_run):
    file = sweep_file(
        {"baseline": ARMS["baseline"]},
        seeds=(0, 1),
        **TWO | {"train": {"epochs": 400}, "evaluation": {"at": [400]}},
    )
    driver = start(file)
    first, second = (cell.run_path for cell in plan_at(file).sweep.cells)
    while not saved(first):
        time.sleep(0.2)
        assert driver.poll() is None, finish(driver)[2]
    assert not second.exists(), "the second waits for the CPUs of the first"
    driver.send_signal(signal.SIGTERM)
    code, _, err = finish(driver, timeout=200)
    assert code == 130 and "Traceback" not in err, err
    assert RunFolder(first).state == "pending" and not (first / "failed.json").exists()
    newest = int(saved(first)[-1].name.removeprefix("step_"))
    assert newest % 23 and newest % 10 == 0, (
        "a step at which the ranks ask each other, not one of the regular checkpoints"
    )


@pytest.fixture(scope="module")
def session():
    before = dict(os.environ)
    os.environ.update(WORKERS | {"RAY_USAGE_STATS_ENABLED": "0"})
    with ray_session(None, WORKERS):
        yield
    os.environ.clear()
    os.environ.update(before)


def job_of(config, tmp_path):
    (tmp_path / "sweeps").mkdir()
    job = Job.beside([config.model_dump(mode="json")], tmp_path / "sweeps", "small-small")
    job.begin()
    return job


@pytest.mark.slow  # a start of Ray, and two groups of workers
def test_a_worker_out_of_memory_is_followed_by_smaller_parts_without_a_retry(
    make_config, tmp_path, monkeypatch, session, trained_run
):
    train_cell = trial.train_cell

    def runs_out(config, stop_file):
        import torch

        from mirai_bench.train.trainer import Trainer

        whole = Trainer.step

        def step(self, number):
            if self.rank == 1 and number == 4 and self.config.machine.micro_batches == 1:
                raise torch.OutOfMemoryError("no memory left")
            return whole(self, number)

        Trainer.step = step
        train_cell(config, stop_file)

    monkeypatch.setattr(ray_train, "train_cell", runs_out)
    machine = {"runs": str(tmp_path), "workers": 2, "cpus": 2, "checkpoint_every": 0.3}
    config = make_config(train={"batch_size": 150}, machine=machine)
    ray_train.train_in_workers(config, job_of(config, tmp_path))
    folder = tmp_path / config.fingerprint()
    assert [(line["step"], line["config"]["machine"]["micro_batches"]) for line in starts_of(folder)] == [
        (0, 1),
        (3, 3),
    ]
    assert RunFolder(folder).state == "done" and not (folder / "failed.json").exists()


@pytest.mark.slow  # a start of Ray
def test_a_run_that_fails_by_itself_is_not_tried_again(make_config, tmp_path, session, trained_run):
    machine = {"runs": str(tmp_path), "workers": 2, "cpus": 2, "log_every": 1}
    config = make_config(
        foresight={"level": "internal", "weight": 1e38}, train={"max_bad_steps": 3}, machine=machine
    )
    ray_train.train_in_workers(config, job_of(config, tmp_path))
    folder = tmp_path / config.fingerprint()
    assert (
        RunFolder(folder).failure().final
        and "3 updates in a row were not finite" in RunFolder(folder).failure().reason
    )
    assert len(starts_of(folder)) == 1 and RunFolder(folder).state == "failed"
