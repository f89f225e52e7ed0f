"""What sweeps survive, really done: kill -9 of workers and of the driver, a lost node, a request to stop."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from mirai_bench.sweep.ray_tune import GRACE_SECONDS
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.small_run import saved
from tests.support.small_sweeps import (
    ARMS,
    LONGER,
    SAVES,
    descendants,
    finish,
    is_trial,
    kill_a_worker,
    plan_at,
    start,
    state,
    table_of,
)


@pytest.mark.slow  # a cluster of three nodes on this machine
def test_a_lost_node_does_not_lose_the_run(sweep_file, trained_run, tmp_path):
    from ray.cluster_utils import Cluster

    file = sweep_file({"baseline": ARMS["baseline"]}, **LONGER, **SAVES)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = start(file, "--address", cluster.address)
        (cell,) = plan_at(file).sweep.cells
        while not saved(cell.run_path):
            time.sleep(0.2)
            assert driver.poll() is None, finish(driver)[2]
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        (lost,) = [
            node for pid, node in raylets.items() if any(is_trial(name) for _, name in descendants(pid))
        ]
        cluster.remove_node(lost, allow_graceful=False)
        code, _, err = finish(driver)
        assert code == 0, err
    finally:
        cluster.shutdown()
    starts = [
        line["step"] for line in read_journal(cell.run_path / "journal.jsonl") if line["kind"] == "start"
    ]
    assert len(starts) == 2 and starts[1] > 0, "it went on from a checkpoint, on the other node"


@pytest.mark.slow  # minutes: a worker takes seconds to come back
def test_ten_kills_of_workers_change_nothing(sweep_file, trained_run):
    arms = {name: ARMS[name] for name in ("baseline", "internal")}
    whole = sweep_file(arms, runs="whole", **LONGER, **SAVES)
    assert finish(start(whole))[0] == 0
    expected = {cell.arm: state(cell.run_path) for cell in plan_at(whole).sweep.cells}
    draw, kills = random.Random(0), 0
    file = sweep_file(arms, runs="killed", **LONGER, **SAVES)
    driver = start(file, "--retries", "100")
    while driver.poll() is None:
        time.sleep(draw.uniform(0.2, 4.0))
        if kills < 10:
            kills += kill_a_worker(driver, draw)
    code, _, err = finish(driver)
    assert code == 0 and kills == 10, err
    for cell in plan_at(file).sweep.cells:
        assert state(cell.run_path) == expected[cell.arm]


@pytest.mark.slow  # minutes: three starts of Ray
def test_kill_of_the_driver_and_of_workers_leaves_the_same_table(sweep_file, tmp_path, trained_run):
    """12 cells, the driver killed twice and workers five times on the way: the table is the
    undisturbed one, byte for byte."""
    cells = {
        "arms": ARMS,
        "seeds": (0, 1, 2),
        "train": {"epochs": 2, "batch_size": 16},
        "evaluation": {"at": [1, 2]},
        **SAVES,
    }
    whole = sweep_file(runs="whole", **cells)
    assert finish(start(whole))[0] == 0
    file = sweep_file(runs="killed", **cells)
    draw, plan = random.Random(1), plan_at(file)
    finished: dict[Path, int] = {}
    for until, workers in ((3, 2), (7, 2), (12, 1)):
        driver, kills = start(file, "--retries", "100"), 0
        while driver.poll() is None:
            time.sleep(draw.uniform(0.2, 1.0))
            done = [path for path in (tmp_path / "killed").glob("*/done.json")]
            if kills < workers:
                kills += kill_a_worker(driver, draw)
            elif until < 12 and len(done) >= until:
                driver.kill()
                break
        code, _, err = finish(driver)
        assert (code, kills) == (0 if until == 12 else -signal.SIGKILL, workers), err
        deadline = time.monotonic() + 20
        while (
            any(RunFolder(cell.run_path).state == "running" for cell in plan.sweep.cells)
            and time.monotonic() < deadline
        ):
            time.sleep(0.5)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, (
            "what was finished was run again"
        )
        finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/done.json")}
    assert table_of(tmp_path / "killed") == table_of(tmp_path / "whole")
    assert all(RunFolder(cell.run_path).state == "done" for cell in plan.sweep.cells)


@pytest.mark.slow  # two starts of Ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_the_cells_save_and_leave(sweep_file, tmp_path, trained_run, number):
    file = sweep_file(
        {"baseline": ARMS["baseline"]}, seeds=(0, 1), train={"epochs": 400}, evaluation={"at": [400]}
    )
    driver = start(file)
    journals = tmp_path / "runs"
    while not any('"kind": "train"' in path.read_text() for path in journals.glob("*/journal.jsonl")):
        time.sleep(0.5)
        assert driver.poll() is None
    second = start(file)  # another driver on the same sweep says so and leaves
    code, out, err = finish(second)
    assert (code, out) == (2, "") and "another process is at work on this sweep" in err
    asked = time.monotonic()
    driver.send_signal(number)
    code, out, err = finish(driver, timeout=200)
    assert code == 130 and "run the same command again to resume" in err and "Traceback" not in err, err
    assert time.monotonic() - asked < GRACE_SECONDS + 20, "a few seconds where nothing else runs"
    for cell in plan_at(file).sweep.cells:
        folder = cell.run_path
        if (folder / "journal.jsonl").exists():
            newest = json.loads((saved(folder)[-1] / "state.json").read_text())["step"]
            assert newest % 93, "not one of the regular checkpoints"
            assert RunFolder(folder).state == "pending"
