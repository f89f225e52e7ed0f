"""Sweeps run for real, on Ray: a cell that fails, the check before training, a search."""

import json

import pytest
import yaml
from small_sweeps import ARMS, finish, plan_at, start, sweep_writer

from mirai_bench.config.load import merge
from mirai_bench.sweep.driver import Options, leave_failure, missing, run_sweep
from mirai_bench.sweep.job import preflight
from mirai_bench.sweep.plan import run_dir_of
from mirai_bench.tracking import mlflow_store
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import failure_of, state_of


@pytest.fixture
def sweep_file(tmp_path, shared_runs):
    return sweep_writer(tmp_path, shared_runs)


def test_a_sweep_with_a_cell_that_fails(sweep_file, tmp_path, monkeypatch, trained_run):
    """The others go on, its reason stands at the end, the exit code is 1; the same command runs what is missing and nothing else."""
    arms = {name: ARMS[name] for name in ("frozen", "baseline")} | {
        "broken": ARMS["internal"] | {"weight": 1e38}
    }
    file = sweep_file(arms, train={"batch_size": 100})
    code, out, err = finish(start(file))
    assert code == 1, err
    plan = plan_at(file)
    states = {cell.arm: state_of(run_dir_of(cell)) for cell in plan.sweep.cells}
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
    assert {path.name for cell in plan.sweep.cells for path in run_dir_of(cell).iterdir()} <= kept | {
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
    assert (
        len(client.get_metric_history(children["frozen"].info.run_id, "eval/FD-digits"))
        == len(evaluations)
        == 1
    )


def test_the_check_before_training(make_config):
    """What only shows with torch and the data at hand is one message a mistake, from the first trial, before anything is trained."""
    good = make_config().model_dump(mode="json")
    assert preflight([good]) == []
    wrong = [
        merge(good, {"train": {"batch_size": 5000}}),
        merge(good, {"evaluation": {"protocol": {"extractor": "digts"}}}),
    ]
    images, extractor = preflight([good, *wrong, *wrong])
    assert (
        "batch_size is 5000, but the training split has 1500 images" in images
        and "Did you mean 'digits'" in extractor
    )


def test_the_check_looks_for_an_encoders_weights_among_the_assets(make_config, tmp_path, monkeypatch):
    from mirai_bench.foresight.encoders import zoo as pixel_entries

    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    lite = {"level": "internal", "source": "encoder", "encoder": {"name": "efficientnet_lite0"}}
    config = make_config(foresight=lite, machine={"assets": str(tmp_path)})
    baseline = config.model_copy(update={"foresight": config.foresight.model_copy(update={"level": "none"})})
    assert preflight([baseline.model_dump(mode="json")]) == [], "it has no use for the encoder"
    (missing,) = preflight([each.model_dump(mode="json") for each in (baseline, config)])
    assert "foresight.encoder.name is efficientnet_lite0" in missing and str(tmp_path) in missing
    entry = pixel_entries.entry_of("efficientnet_lite0")
    (tmp_path / entry.file).write_bytes(b"another file")
    (other,) = preflight([config.model_dump(mode="json")])
    assert "is not the file that efficientnet_lite0 means" in other
    monkeypatch.setattr(pixel_entries, "file_sha256", lambda path: entry.sha256)
    assert preflight([config.model_dump(mode="json")]) == []


@pytest.mark.slow  # a start of Ray
def test_what_the_check_refuses_ends_before_any_training(sweep_file, tmp_path, trained_run):
    code, out, err = finish(start(sweep_file({"baseline": ARMS["baseline"]}, train={"batch_size": 5000})))
    assert (code, out) == (2, "") and "error: train.batch_size is 5000" in err and "Traceback" not in err
    assert not list((tmp_path / "runs").glob("*/journal.jsonl")) and not list(
        (tmp_path / "runs" / "sweeps").glob("*.json")
    )


def test_a_cell_that_ray_gave_up_says_so(tmp_path):
    leave_failure(tmp_path / "run", RuntimeError("Traceback …\n\nThe actor died unexpectedly\n"), retries=2)
    assert failure_of(tmp_path / "run") == "given up after 3 attempts: The actor died unexpectedly"


@pytest.mark.slow  # a start of Ray
def test_a_search_is_apart_from_the_sweep(sweep_file, tmp_path, trained_run):
    file = sweep_file(
        {name: ARMS[name] for name in ("baseline", "internal")},
        train={"epochs": 2},
        evaluation={"at": [1, 2]},
    )
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
