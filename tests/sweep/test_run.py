"""Sweeps run on Ray for real, with a cell that fails, a failing check before training, and a search."""

import contextlib
import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml

from mirai_bench.sweep import ray_session, ray_tune
from mirai_bench.sweep.__main__ import command
from mirai_bench.sweep.driver import Options, Report, missing, run_sweep, train_missing
from mirai_bench.sweep.job import Job
from mirai_bench.sweep.search import run_trial
from mirai_bench.tracking import mlflow_store
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.small_sweeps import ARMS, finish, plan_at, start


def test_a_sweep_with_a_cell_that_fails(sweep_file, tmp_path, monkeypatch, trained_run):
    """The other cells are trained, the reason is shown at the end, and the exit code is 1.

    The same command then runs what is missing and nothing else.
    """
    arms = {name: ARMS[name] for name in ("frozen", "baseline")} | {
        "broken": ARMS["internal"] | {"weight": 1e38}
    }
    file = sweep_file(arms, train={"batch_size": 100})
    code, out, err = finish(start(file))
    assert code == 1, err
    plan = plan_at(file)
    states = {cell.arm: RunFolder(cell.run_path).state for cell in plan.sweep.cells}
    assert states == {"frozen": "done", "baseline": "done", "broken": "failed"}
    assert (
        "updates in a row were not finite" in err and "failed: broken, seed 0: " in err and "mlflow ui" in err
    )
    assert "Traceback" not in err and "Overhead" in err
    assert (
        out.startswith("**small: Does it run?")
        and "baseline" in out
        and "Configuration for experiment" not in out
    )
    kept = {"config.json", "journal.jsonl", "log.txt", "done.json", "failed.json", "checkpoints", "samples"}
    assert {path.name for cell in plan.sweep.cells for path in cell.run_path.iterdir()} <= kept | {
        "run.lock",
        "mlflow.lock",
    }
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
    means = [run.data.tags["arm"] for run in runs if run.data.tags["kind"] == "summary"]
    assert means == ["baseline", "frozen"], "the baseline first, and no arm without an evaluation"
    assert parent.info.status == "FAILED" and len(runs) == 1 + len(children) + len(means)
    assert "Group by: arm" in parent.data.tags["mlflow.note.content"]
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
    assert (
        len(client.get_metric_history(children["frozen"].info.run_id, "eval/FD-digits"))
        == len(evaluations)
        == 1
    )


def test_a_trial_that_ray_gave_up_leaves_its_reason(sweep_file, monkeypatch):
    """This also holds if its process never started, so that Ray has neither config nor metrics of it."""
    plan = plan_at(sweep_file({name: ARMS[name] for name in ("baseline", "internal", "output")}))
    cells = list(plan.sweep.cells)
    lost = RuntimeError("Traceback …\n\nThe actor died unexpectedly\n")
    seconds = {"seconds": 9.0, "ready_seconds": 2.0, "measured_seconds": 6.0}
    results = [
        SimpleNamespace(metrics=seconds, error=None),
        SimpleNamespace(metrics={}, error=lost),
        SimpleNamespace(metrics=None, error=lost),
    ]
    monkeypatch.setattr(ray_session, "session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(ray_tune, "slots", lambda machine, local: 2)
    monkeypatch.setattr(ray_tune, "processes_per_node", lambda machine, trials: 2)
    monkeypatch.setattr(ray_tune, "execute", lambda *_, **options: results)
    plan.file(".json").parent.mkdir()
    report = Report()
    train_missing(cells, Options(retries=1), Mock(plan=plan), report)
    assert (report.slots, report.trial_seconds, report.measured_seconds) == (2, 9.0, 6.0)
    failures = [RunFolder(cell.run_path).failure() for cell in cells]
    assert failures[0] is None
    for failure in failures[1:]:
        assert str(failure) == "given up after 2 attempts: The actor died unexpectedly"
        assert not failure.final, "the next command tries it again"


@pytest.mark.slow  # a start of Ray
def test_what_the_check_refuses_ends_before_any_training(sweep_file, tmp_path, trained_run):
    code, out, err = finish(start(sweep_file({"baseline": ARMS["baseline"]}, train={"batch_size": 5000})))
    assert (code, out) == (2, "") and "error: train.batch_size is 5000" in err and "Traceback" not in err
    assert not list((tmp_path / "runs").glob("*/journal.jsonl")) and not list(
        (tmp_path / "runs" / "sweeps").glob("*.json")
    )


@pytest.mark.slow  # a start of Ray
def test_a_search_is_apart_from_the_sweep(sweep_file, tmp_path, trained_run):
    file = sweep_file(
        {name: ARMS[name] for name in ("baseline", "internal")},
        train={"epochs": 2},
        evaluation={"at": [1, 2]},
    )
    space = {"foresight.weight": {"low": 0.1, "high": 10, "log": True}, "foresight.k": [1, 2]}
    search = {"arms": {"internal": space}, "samples": 4, "reduction": 2}
    file.write_text(file.read_text() + yaml.safe_dump({"search": search}))
    code, out, err = finish(start(file, "search"))
    assert code == 0, err
    record = json.loads((tmp_path / "runs" / "searches" / "small-small-internal.json").read_text())
    rows = record["configurations"]
    runs = [run for row in rows for run in row["runs"]]
    assert len(rows) == 4 == len(out.splitlines()) - 1 and len({run["fingerprint"] for run in runs}) == 4
    values = [row["metric"] for row in rows]
    assert values == sorted(values) and {run["state"] for run in runs} == {"done", "stopped early"}
    assert all(run["epoch"] == 2 for run in runs if run["state"] == "done")
    assert "the best configuration of internal: --set foresight." in err and "  as YAML: {foresight: {" in err
    assert not list((tmp_path / "runs").glob("sweeps/*.json")), "no table of arms knows of them"
    assert err.count("runs ended: foresight.") == 4 and "4/4 runs ended" in err
    client = mlflow_store.connect(uri := f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.search_runs([mlflow_store.experiment_id(client, uri)])
    (parent,) = [run for run in found if run.data.tags["kind"] == "search"]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"].startswith("| foresight.k | foresight.weight | metric |")
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    ends = {run.data.tags["fingerprint"]: run.info.status for run in children}
    assert ends == {run["fingerprint"]: "FINISHED" if run["state"] == "done" else "KILLED" for run in runs}
    assert all(run.data.tags["arm"].startswith("foresight.k=") for run in children)
    assert all(RunFolder(cell.run_path).state == "pending" for cell in plan_at(file).sweep.cells)


@pytest.mark.slow  # a start of Ray
def test_several_arms_are_searched_over_every_combination(sweep_file, tmp_path):
    file = sweep_file(
        {name: ARMS[name] for name in ("baseline", "internal")}, train={"epochs": 1}, evaluation={"at": [1]}
    )
    space = {"train.lr": [1e-3, 2e-3], "train.weight_decay": [0.0, 0.1]}
    search = {"arms": {"baseline": space, "internal": space}, "samples": "all", "scheduler": "none"}
    file.write_text(file.read_text() + yaml.safe_dump({"search": search}))
    code, out, err = finish(start(file, "search"))
    assert code == 0 and len(out.splitlines()) == 2 * (1 + 4), err
    for arm in ("baseline", "internal"):
        record = json.loads((tmp_path / "runs" / "searches" / f"small-small-{arm}.json").read_text())
        drawn = sorted(tuple(row["values"].values()) for row in record["configurations"])
        assert drawn == [(1e-3, 0.0), (1e-3, 0.1), (2e-3, 0.0), (2e-3, 0.1)]


@pytest.mark.slow  # a start of Ray
def test_a_search_with_seeds_trains_every_configuration_to_its_end(sweep_file, tmp_path):
    file = sweep_file({"baseline": ARMS["baseline"]}, train={"epochs": 2}, evaluation={"at": [1, 2]})
    space = {"train.lr": {"low": 1e-3, "high": 1e-2, "log": True}}
    search = {"arms": {"baseline": space}, "samples": 3, "seeds": [1000, 1001], "scheduler": "none"}
    file.write_text(file.read_text() + yaml.safe_dump({"search": search | {"slack": 1.0, "seconds": 100.0}}))
    code, _, err = finish(start(file, "search"))
    assert code == 0, err
    record = json.loads((tmp_path / "runs" / "searches" / "small-small-baseline.json").read_text())
    rows = record["configurations"]
    assert len({row["values"]["train.lr"] for row in rows}) == 3
    for row in rows:
        assert [run["seed"] for run in row["runs"]] == [1000, 1001] and row["excluded"] is None
        assert {run["state"] for run in row["runs"]} == {"done"}
        mean = sum(run["metric"] for run in row["runs"]) / 2
        assert row["metric"] == pytest.approx(mean) and row["seconds"] > 0


def test_a_search_can_be_shown_without_starting_it(sweep_file, tmp_path, capsys, monkeypatch):
    file = sweep_file({name: ARMS[name] for name in ("baseline", "internal")})
    search = {"arms": {"internal": {"foresight.k": [1, 2]}}, "samples": 4}
    file.write_text(file.read_text() + yaml.safe_dump({"search": search}))
    monkeypatch.chdir(tmp_path)
    assert command(["search", file.name, "--dry-run"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["arm"] == "internal" and shown["space"] == {"foresight.k": [1, 2]}
    assert shown["training FLOPs"].endswith("at most")
    search["arms"]["baseline"] = {"train.lr": [1e-3]}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"search": search}))
    assert command(["search", file.name, "--dry-run"]) == 0
    assert [one["arm"] for one in yaml.safe_load_all(capsys.readouterr().out)] == ["baseline", "internal"]
    assert not (tmp_path / "runs" / "searches").exists()


def test_a_drawn_run_that_cannot_start_leaves_its_reason(make_config, tmp_path):
    """The driver's machine has the device, but the node of the trial does not."""
    config = make_config(foresight={"level": "internal"}, machine={"runs": str(tmp_path)})
    job = Job.beside([config.model_dump(mode="json")], tmp_path, "small-small")
    job.begin()
    job.check_file.write_text('{"wrong": []}')
    job.configs[0]["machine"]["device"] = "cuda"
    run_trial({"foresight.k": 2}, job=job, metric="FD-digits")
    drawn = make_config(foresight={"level": "internal", "k": 2}, machine={"runs": str(tmp_path)})
    assert "no CUDA device is visible" in str(RunFolder(drawn.run_path).failure())
