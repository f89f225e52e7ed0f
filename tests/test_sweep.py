"""Sweeps run for real, on Ray: failures, kills, restarts. The command is started as a user starts it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import SMALL
from safetensors.torch import load_file

from mirai_bench import mlflow_store
from mirai_bench.checkpoint import saved
from mirai_bench.compose import merge, read_profile
from mirai_bench.journal import read_journal
from mirai_bench.results import read_journals
from mirai_bench.sweep.driver import Options, leave_failure, missing, run_sweep
from mirai_bench.sweep.plan import failure_of, make_plan, run_dir_of, state_of
from mirai_bench.sweep.trial import preflight
from mirai_bench.tables import build_table, markdown

ARMS = {
    "baseline": {"level": "none"},
    "internal": {"level": "internal", "source": "ema", "k": 2},
    "frozen": {"level": "internal", "source": "frozen", "k": 1},
    "output": {"level": "output", "k": 2},
}

LONGER = {"train": {"epochs": 6, "batch_size": 16}, "evaluation": {"at": [3, 6]}}
SAVES = {"machine": {"device": "cpu", "log_every": 10, "checkpoint_every": 0.25}}


@pytest.fixture
def sweep_file(tmp_path, shared_runs):
    """Writes a sweep file over the shrunk digits profile; what is made once (classifier, reference) is shared with the other tests."""

    def write(arms, seeds=(0,), runs="runs", **sections):
        profile = merge(merge(read_profile("digits"), SMALL), {"machine": {"device": "cpu", "log_every": 5}})
        profile = merge(profile, {"model": {"width": 16}, **sections})
        profile.pop("profile")
        (tmp_path / "profiles").mkdir(exist_ok=True)
        (tmp_path / "profiles" / "small.yaml").write_text(yaml.safe_dump(profile))
        content = {"axis": "small", "question": "Does it run?", "profile": "small", "seeds": list(seeds), "arms": arms}
        content["machine"] = {"runs": runs}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        (tmp_path / runs).mkdir(exist_ok=True)
        if not (tmp_path / runs / "cache").exists() and (shared_runs / "cache").exists():
            (tmp_path / runs / "cache").symlink_to(shared_runs / "cache")
        return tmp_path / "small.yaml"

    return write


def environment(folder):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_"))}
    package = str(Path(__file__).resolve().parents[1])
    return kept | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "PYTHONPATH": package}


def start(file, *argv):
    """The command, in the file's folder, in a process group of its own."""
    words = [*argv, file.name] if argv == ("search",) else [file.name, *argv]
    command = [sys.executable, "-m", "mirai_bench.sweep", *words]
    return subprocess.Popen(
        command, cwd=file.parent, env=environment(file.parent), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process, timeout=400):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def plan_at(file, **choices):
    before = os.getcwd()
    os.chdir(file.parent)
    try:
        return make_plan(file, **choices)
    finally:
        os.chdir(before)


def table_of(runs):
    (results,) = read_journals(runs, "small")
    return markdown(build_table(results, timing=False))


def test_a_sweep_with_a_cell_that_fails(sweep_file, tmp_path, monkeypatch, trained_run):
    """The others go on, its reason stands at the end, the exit code is 1; the same command runs what is missing and nothing else."""
    arms = {name: ARMS[name] for name in ("frozen", "baseline")} | {"broken": ARMS["internal"] | {"weight": 1e38}}
    file = sweep_file(arms, train={"batch_size": 100})
    code, out, err = finish(start(file))
    assert code == 1, err
    plan = plan_at(file)
    states = {cell.arm: state_of(run_dir_of(cell)) for cell in plan.sweep.cells}
    assert states == {"frozen": "done", "baseline": "done", "broken": "failed"}
    assert "updates in a row were not finite" in err and "failed: broken, seed 0: " in err and "mlflow ui" in err
    assert "Traceback" not in err and "Overhead" in err
    assert out.startswith("**small: Does it run?") and "baseline" in out and "Configuration for experiment" not in out
    kept = {"config.json", "journal.jsonl", "log.txt", "done.json", "failed.json", "checkpoints", "samples"}
    assert {path.name for cell in plan.sweep.cells for path in run_dir_of(cell).iterdir()} <= kept | {"run.lock", "mlflow.lock"}
    assert not (tmp_path / "runs" / ".ray" / plan.name).exists()
    _check_mlflow(plan, tmp_path, monkeypatch)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*.json*")}
    assert [cell.arm for cell in missing(plan)] == ["broken"], "a failed cell is tried again"
    rest = plan_at(file, only=["baseline", "frozen"])
    assert "ray start" not in run_sweep(rest, Options()).phases, "nothing is missing: nothing is started"
    runs = {path: at for path, at in before.items() if path.parent.name != "sweeps"}
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    planned = json.loads(plan.file(".json").read_text())
    assert planned["arms"] == ["frozen", "baseline", "broken"], "--only takes nothing out of the sweep"


def _check_mlflow(plan, folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    client = mlflow_store.connect(mlflow_store.store_uri())
    runs = client.search_runs([mlflow_store.experiment_id(client, mlflow_store.store_uri())])
    (parent,) = [run for run in runs if run.data.tags["kind"] == "sweep"]
    children = {run.data.tags["arm"]: run for run in runs if run.data.tags["kind"] == "run"}
    assert parent.info.status == "FAILED" and len(runs) == 4
    assert {arm: run.info.status for arm, run in children.items()} == {
        "frozen": "FINISHED",
        "baseline": "FINISHED",
        "broken": "FAILED",
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    evaluations = [
        line
        for line in read_journal(plan.runs / children["frozen"].data.tags["fingerprint"] / "journal.jsonl")
        if line["kind"] == "evaluation"
    ]
    assert len(client.get_metric_history(children["frozen"].info.run_id, "eval/FD-digits")) == len(evaluations) == 1


def test_the_check_before_training(make_config):
    """What only shows with torch and the data at hand is one message a mistake, from the first trial, before anything is trained."""
    good = make_config().model_dump(mode="json")
    assert preflight([good]) == []
    wrong = [merge(good, {"train": {"batch_size": 5000}}), merge(good, {"evaluation": {"protocol": {"extractor": "digts"}}})]
    images, extractor = preflight([good, *wrong, *wrong])
    assert "batch_size is 5000, but the training split has 1500 images" in images and "Did you mean 'digits'" in extractor


@pytest.mark.slow  # a start of Ray
def test_what_the_check_refuses_ends_before_any_training(sweep_file, tmp_path, trained_run):
    code, out, err = finish(start(sweep_file({"baseline": ARMS["baseline"]}, train={"batch_size": 5000})))
    assert (code, out) == (2, "") and "error: train.batch_size is 5000" in err and "Traceback" not in err
    assert not list((tmp_path / "runs").glob("*/journal.jsonl")) and not list((tmp_path / "runs" / "sweeps").glob("*.json"))


def test_a_cell_that_ray_gave_up_says_so(tmp_path):
    leave_failure(tmp_path / "run", RuntimeError("Traceback …\n\nThe actor died unexpectedly\n"), retries=2)
    assert failure_of(tmp_path / "run") == "given up after 3 attempts: The actor died unexpectedly"


# ---- kills


def descendants(pid):
    """(pid, command line) of all processes below `pid`."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, IndexError):
                continue
    found, level = [], {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += [(child, names[child]) for child in level]
    return found


def is_trial(name):
    return name.startswith("ray::") and "train" in name


def kill_a_worker(driver, draw):
    """kill -9 of a process that trains a cell; False where none does."""
    workers = [pid for pid, name in descendants(driver.pid) if is_trial(name)]
    if workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    return bool(workers)


def state(run_dir):
    """What must be the same: final weights, moments, EMA; losses; metrics."""
    tensors = {name: load_file(saved(run_dir)[-1] / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}
    flat = {(file, key): tensor.numpy().tobytes() for file, group in tensors.items() for key, tensor in group.items()}
    lines = list(read_journal(run_dir / "journal.jsonl"))
    losses = [(line["step"], line["loss"], line["ntp"], line["grad_norm"]) for line in lines if line["kind"] == "train"]
    metrics = [(line["step"], line["metrics"]) for line in lines if line["kind"] == "evaluation"]
    grids = {path.name: path.read_bytes() for path in (run_dir / "samples").iterdir()}
    return flat, losses, metrics, grids


@pytest.mark.slow  # a start of Ray, and of torchrun in it
def test_a_cell_of_two_processes(sweep_file, trained_run):
    file = sweep_file({"baseline": ARMS["baseline"]}, machine={"device": "cpu", "log_every": 5, "workers": 2, "cpus": 2})
    code, out, err = finish(start(file))
    assert code == 0 and "baseline" in out, err
    (cell,) = plan_at(file).sweep.cells
    lines = list(read_journal(run_dir_of(cell) / "journal.jsonl"))
    assert lines[0]["workers"] == 2 and [line["kind"] for line in lines].count("end") == 1


@pytest.mark.slow  # a start of Ray
def test_a_search_is_apart_from_the_sweep(sweep_file, tmp_path, trained_run):
    file = sweep_file({name: ARMS[name] for name in ("baseline", "internal")}, train={"epochs": 2}, evaluation={"at": [1, 2]})
    space = {"foresight.weight": {"low": 0.1, "high": 10, "log": True}, "foresight.k": [1, 2]}
    search = {"arm": "internal", "samples": 4, "reduction": 2, "space": space}
    file.write_text(file.read_text() + yaml.safe_dump({"search": search}))
    code, out, err = finish(start(file, "search"))
    assert code == 0, err
    rows = json.loads((tmp_path / "runs" / "searches" / "small-small-internal.json").read_text())["runs"]
    assert len(rows) == 4 == len(out.splitlines()) - 1 and len({row["fingerprint"] for row in rows}) == 4
    values = [row["metric"] for row in rows]
    assert values == sorted(values) and {row["state"] for row in rows} == {"done", "stopped early"}
    assert all(row["epoch"] == 2 for row in rows if row["state"] == "done")
    assert not list((tmp_path / "runs").glob("sweeps/*.json")), "no table of arms knows of them"
    assert all(state_of(run_dir_of(cell)) == "pending" for cell in plan_at(file).sweep.cells)


@pytest.mark.slow  # a cluster of three nodes on this machine
def test_a_lost_node_does_not_lose_the_run(sweep_file, trained_run, tmp_path):
    from ray.cluster_utils import Cluster

    file = sweep_file({"baseline": ARMS["baseline"]}, **LONGER, **SAVES)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = start(file, "--address", cluster.address)
        (cell,) = plan_at(file).sweep.cells
        while not saved(run_dir_of(cell)):
            time.sleep(0.2)
            assert driver.poll() is None, finish(driver)[2]
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        (lost,) = [node for pid, node in raylets.items() if any(is_trial(name) for _, name in descendants(pid))]
        cluster.remove_node(lost, allow_graceful=False)
        code, _, err = finish(driver)
        assert code == 0, err
    finally:
        cluster.shutdown()
    starts = [line["step"] for line in read_journal(run_dir_of(cell) / "journal.jsonl") if line["kind"] == "start"]
    assert len(starts) == 2 and starts[1] > 0, "it went on from a checkpoint, on the other node"


@pytest.mark.slow  # minutes: a worker takes seconds to come back
def test_ten_kills_of_workers_change_nothing(sweep_file, trained_run):
    arms = {name: ARMS[name] for name in ("baseline", "internal")}
    whole = sweep_file(arms, runs="whole", **LONGER, **SAVES)
    assert finish(start(whole))[0] == 0
    expected = {cell.arm: state(run_dir_of(cell)) for cell in plan_at(whole).sweep.cells}
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
        assert state(run_dir_of(cell)) == expected[cell.arm]


@pytest.mark.slow  # minutes: three starts of Ray
def test_kill_of_the_driver_and_of_workers_leaves_the_same_table(sweep_file, tmp_path, trained_run):
    """12 cells, the driver killed twice and workers five times on the way: the table is the undisturbed one, byte for byte."""
    cells = {"arms": ARMS, "seeds": (0, 1, 2), "train": {"epochs": 2, "batch_size": 16}, "evaluation": {"at": [1, 2]}, **SAVES}
    whole = sweep_file(runs="whole", **cells)
    assert finish(start(whole))[0] == 0
    file = sweep_file(runs="killed", **cells)
    draw, plan = random.Random(1), plan_at(file)
    finished: dict[Path, int] = {}
    for until in (3, 7, 12):
        driver, kills = start(file, "--retries", "100"), 0
        while driver.poll() is None:
            time.sleep(draw.uniform(0.5, 2.0))
            done = [path for path in (tmp_path / "killed").glob("*/done.json")]
            if until < 12 and len(done) >= until:
                driver.kill()
                break
            if kills < (2, 2, 1)[(3, 7, 12).index(until)]:
                kills += kill_a_worker(driver, draw)
        code, _, err = finish(driver)
        assert code == (0 if until == 12 else -signal.SIGKILL), err
        deadline = time.monotonic() + 20
        while any(state_of(run_dir_of(cell)) == "running" for cell in plan.sweep.cells) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, "what was finished was run again"
        finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/done.json")}
    assert table_of(tmp_path / "killed") == table_of(tmp_path / "whole")
    assert all(state_of(run_dir_of(cell)) == "done" for cell in plan.sweep.cells)


@pytest.mark.slow  # two starts of Ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_the_cells_save_and_leave(sweep_file, tmp_path, trained_run, number):
    file = sweep_file({"baseline": ARMS["baseline"]}, seeds=(0, 1), train={"epochs": 400}, evaluation={"at": [400]})
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
    code, out, err = finish(driver, timeout=60)
    assert code == 130 and "run the same command again to go on" in err and "Traceback" not in err, err
    assert time.monotonic() - asked < 25
    for cell in plan_at(file).sweep.cells:
        folder = run_dir_of(cell)
        if (folder / "journal.jsonl").exists():
            newest = json.loads((saved(folder)[-1] / "state.json").read_text())["step"]
            assert newest % 93, "not one of the regular checkpoints"
            assert state_of(folder) == "pending"
