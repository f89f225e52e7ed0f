"""Runs send everything to MLflow once, whichever process dies and however often."""

import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from mirai_bench.results.reading import read_mlflow
from mirai_bench.tracking import mlflow_store
from mirai_bench.tracking import ship as ship_module
from mirai_bench.tracking.__main__ import command
from mirai_bench.tracking.failure import Failure
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.ship import end_sweep, ship, start_sweep
from mirai_bench.utils.errors import UserError
from tests.support.diagnosed import diagnosis_line, write_diagnoses
from tests.support.synthetic import (
    START,
    evaluation_line,
    injection_level,
    plan_of,
    shared_store,
    train_line,
    write_plan,
    write_run,
)

METRICS = {"FD-digits": 4.0, "precision": 0.5}


@pytest.fixture
def store(tmp_path_factory, monkeypatch):
    uri = shared_store(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow_store.connect(uri)


@pytest.fixture
def cell(tmp_path, request):
    """Returns the folder of a finished run, and the plan of its sweep under this test's own name."""
    sweep = injection_level(only=["baseline"], seeds=[7])
    path = write_run(tmp_path / "runs", sweep.cells[0].config, lambda epoch: METRICS)
    return RunFolder(path), plan_of(sweep) | {"axis": request.node.name}


def children(store, plan):
    query = f"tags.axis = '{plan['axis']}' and tags.kind = 'run'"
    return list(store.search_runs([mlflow_store.experiment_id(store, "")], query))


def points(store, run):
    """Returns the number of points of each (key, step)."""
    counts = Counter()
    for key in run.data.metrics:
        counts.update((key, metric.step) for metric in store.get_metric_history(run.info.run_id, key))
    return counts


def expected_points(folder):
    expected = {}
    for line in folder.journal.lines():
        if line["kind"] in ship_module.PREFIX:
            expected |= {(metric.key, metric.step): 1 for metric in ship_module._points(line)}
    return expected


def test_ship_sends_everything_once(store, cell, tmp_path):
    folder, plan = cell
    parent = start_sweep(plan)
    assert start_sweep(plan) == parent, "the same sweep again has the same parent"
    for _ in range(2):
        assert ship(folder, parent=parent, axis=plan["axis"], arm="baseline", seed=7)
    (run,) = children(store, plan)
    assert points(store, run) == expected_points(folder)
    assert ("train/foresight", 10) not in points(store, run), "a non-finite value is no point"
    keys = {key for key in run.data.metrics if key.startswith("eval/")}
    costs = ("train_flops", "train_seconds", "sample_seconds", "evaluate_seconds")
    assert keys == {f"eval/{key}" for key in ("epoch", "FD-digits", "precision", *costs)}
    tags = {
        "axis": plan["axis"],
        "arm": "baseline",
        "seed": "7",
        "fingerprint": folder.path.name,
        "git_commit": "0" * 40,
        "git_dirty": "False",
        "profile": "digits",
        "mlflow.parentRunId": parent,
    }
    assert {key: run.data.tags[key] for key in tags} == tags
    assert run.data.params["train.lr"] == "0.002"
    assert run.data.params["foresight.level"] == "none"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == START * 1000
    history = {m.step: m.timestamp for m in store.get_metric_history(run.info.run_id, "eval/FD-digits")}
    assert history == {epoch * 10: int((START + 1 + 10 * epoch) * 1000) for epoch in (2, 4, 6, 8, 12)}
    assert {info.path for info in store.list_artifacts(run.info.run_id, "samples")} == {
        f"samples/epoch_{e:07.2f}.png" for e in (2, 4, 6, 8, 12)
    }
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert yaml.safe_load((artifacts / "config.yaml").read_text())["train"]["epochs"] == 12
    run, *evaluations = read_journal(artifacts / "records.jsonl")
    lines = [line for line in folder.journal.lines() if line["kind"] == "evaluation"]
    for line, evaluation in zip(lines, evaluations, strict=True):
        record = run | evaluation
        assert {key: line[key] for key in record if key in line} == record


def test_one_folder_under_two_sweeps(store, cell):
    folder, plan = cell
    second = plan | {"profile": "other"}
    for each in (plan, second):
        ship(folder, parent=start_sweep(each), axis=plan["axis"], arm="baseline", seed=7)
    assert len({run.data.tags["mlflow.parentRunId"] for run in children(store, plan)}) == 2


def test_growing_and_rewound_journal_adds_no_duplicate(store, tmp_path, cell):
    folder, plan = cell
    config = injection_level(only=["baseline"], seeds=[7]).cells[0].config
    journal = folder.journal
    whole = journal.path.read_text().splitlines(keepends=True)
    folder.done_file.unlink()
    journal.path.write_text("".join(whole[:9]) + whole[9][:20])  # the last line is being written
    labels = {"parent": start_sweep(plan), "axis": plan["axis"], "arm": "baseline", "seed": 7}
    assert ship(folder, **labels)
    assert children(store, plan)[0].info.status == "RUNNING"
    journal.rewind(30)  # back to a checkpoint: the steps after it are trained again, at another time
    for epoch in range(4, 7):
        line = train_line(10 * epoch, 2.0 * epoch, 1e12 * epoch)
        journal.append(line | {"time": START + 500 + epoch})
        if epoch in (4, 6):
            line = evaluation_line(config, 10 * epoch, METRICS, 2.0 * epoch, 1e12)
            journal.append(line | {"time": START + 501 + epoch})
        assert ship(folder, **labels)
    (run,) = children(store, plan)
    assert points(store, run) == expected_points(folder)
    folder.write_failure(Failure("not finite", 60, traceback="Traceback: all of it"))
    assert ship(folder, **labels)
    (run,) = children(store, plan)
    assert (run.info.status, run.data.tags["failed"]) == ("FAILED", "not finite")
    assert "traceback.txt" in {artifact.path for artifact in store.list_artifacts(run.info.run_id)}
    folder.take_failure()
    assert ship(folder, **labels)
    assert children(store, plan)[0].info.status == "RUNNING"


def test_batches_hold_whole_lines_within_the_limit():
    lines = [train_line(step, 1.0, 1.0) for step in range(0, 2000, 10)]
    batches = list(ship_module._batches(iter(lines)))
    assert all(len(batch) <= ship_module.MOST_POINTS for batch in batches)
    assert sum(map(len, batches)) == 200 * 10
    assert not {p.step for p in batches[0]} & {p.step for p in batches[1]}


def diagnosed(folder, *lines):
    """Adds diagnoses, each given as what it changes in a line."""
    config = injection_level(only=["baseline"], seeds=[7]).cells[0].config
    runs = folder.path.parent
    write_diagnoses(
        runs, config, [diagnosis_line(config, **{"values": {"lds@1": 0.5}} | line) for line in lines]
    )


def sent_diagnoses(store, plan):
    """Returns the values that MLflow has of each key and step, oldest first."""
    (run,) = children(store, plan)
    found = {}
    for key in run.data.metrics:
        if key.startswith("diagnose/"):
            for point in sorted(store.get_metric_history(run.info.run_id, key), key=lambda p: p.timestamp):
                found.setdefault((key, point.step), []).append(point.value)
    return found


def test_diagnoses_are_sent_once_however_often_they_are_sent(store, cell):
    folder, plan = cell
    labels = {"parent": start_sweep(plan), "axis": plan["axis"], "arm": "baseline", "seed": 7}
    spatial = {"diagnostic": "spatial", "values": {"lds": 0.25, "lds@1": 0.5}}
    diagnosed(folder, spatial | {"step": 60}, spatial, {"diagnostic": "gradients"})
    expected = {
        ("diagnose/spatial/lds", 60): [0.25],
        ("diagnose/spatial/lds_1", 60): [0.5],
        ("diagnose/spatial/lds", 120): [0.25],
        ("diagnose/spatial/lds_1", 120): [0.5],
        ("diagnose/gradients/lds_1", 120): [0.5],
    }
    for _ in range(3):
        assert ship(folder, **labels)
        assert sent_diagnoses(store, plan) == expected
    assert children(store, plan)[0].info.status == "FINISHED"
    diagnosed(folder, {"diagnostic": "absorption"})  # of a run that has ended and was sent
    assert ship(folder, **labels)
    assert sent_diagnoses(store, plan) == expected | {("diagnose/absorption/lds_1", 120): [0.5]}


def test_a_diagnosis_of_another_scope_is_a_newer_point(store, cell):
    folder, plan = cell
    labels = {"parent": start_sweep(plan), "axis": plan["axis"], "arm": "baseline", "seed": 7}
    diagnosed(folder, {"diagnostic": "spatial"})
    assert ship(folder, **labels)
    newer = {"time": START + 3000, "digest": "new", "values": {"lds@1": 0.75}}
    diagnosed(folder, {"diagnostic": "spatial"} | newer)
    for _ in range(2):
        assert ship(folder, **labels)
        assert sent_diagnoses(store, plan) == {("diagnose/spatial/lds_1", 120): [0.5, 0.75]}


def test_a_damaged_diagnosis_holds_up_nothing_else(store, cell, capsys):
    folder, plan = cell
    diagnosed(folder, {"diagnostic": "spatial", "values": {"lds": "high"}})
    assert ship(folder, parent=start_sweep(plan), axis=plan["axis"], arm="baseline", seed=7)
    assert points(store, children(store, plan)[0]) == expected_points(folder)
    assert "diagnosis of another form" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_call(store, cell, monkeypatch, moment):
    """Whichever call the sender dies before or after, the next attempt sends what is missing."""
    folder, plan = cell
    labels = {"parent": start_sweep(plan), "axis": plan["axis"], "arm": "baseline", "seed": 7}
    values = {f"lds@{layer}": float(layer) for layer in range(50)}  # more than one batch
    diagnosed(folder, {"diagnostic": "spatial", "values": values})
    monkeypatch.setattr(ship_module, "MOST_POINTS", 40)
    calls = {"left": 0}

    class Dying:
        def __init__(self, client):
            self.client = client

        def __getattr__(self, name):
            def call(*args, **kwargs):
                calls["left"] -= 1
                if calls["left"] < 0 and moment == "before":
                    raise ConnectionError("killed")
                answer = getattr(self.client, name)(*args, **kwargs)
                if calls["left"] < 0:
                    raise ConnectionError("killed")
                return answer

            return call

    real = mlflow_store.connect
    monkeypatch.setattr(mlflow_store, "connect", lambda uri: Dying(real(uri)))
    attempts = 0
    while True:
        calls["left"] = attempts % 20  # each time a little further
        if ship(folder, **labels):
            break
        attempts += 1
    assert attempts > 4
    monkeypatch.setattr(mlflow_store, "connect", real)
    (run,) = children(store, plan)
    of_diagnoses = {(f"diagnose/spatial/lds_{layer}", 120): 1 for layer in range(50)}
    assert points(store, run) == expected_points(folder) | of_diagnoses


@pytest.mark.parametrize(
    "seconds", [1.5, pytest.param(30.0, marks=pytest.mark.slow)]
)  # SQLite itself waits for 20
def test_locked_sqlite_is_waited_for(store, cell, seconds):
    folder, plan = cell
    parent = start_sweep(plan)
    connection = sqlite3.connect(
        store.tracking_uri.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
    )
    connection.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(seconds, lambda: connection.execute("COMMIT"))
    release.start()
    start = time.monotonic()
    assert ship(folder, parent=parent, axis=plan["axis"], arm="baseline", seed=7)
    assert time.monotonic() - start > seconds - 0.5
    assert points(store, children(store, plan)[0]) == expected_points(folder)
    connection.close()


def test_a_lock_beyond_sqlites_own_patience_is_retried(monkeypatch):
    monkeypatch.setattr(mlflow_store.time, "sleep", lambda seconds: None)
    answers = iter([RuntimeError("(sqlite3.OperationalError) database is locked")] * 3 + ["sent"])

    def attempt():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert mlflow_store.retry_while_locked(attempt) == "sent"
    with pytest.raises(ValueError):
        mlflow_store.retry_while_locked(lambda: int("another error is not waited for"))


def write_plan_of(folder, plan):
    sweeps = folder.path.parent / "sweeps"
    sweeps.mkdir()
    (sweeps / f"{plan['axis']}-digits.json").write_text(json.dumps(plan))


def test_away_is_said_once_and_replayed_later(store, cell, monkeypatch, capsys):
    folder, plan = cell
    write_plan_of(folder, plan)
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
        mlflow_store.create_store()
        assert start_sweep(plan) is None
        for _ in range(3):
            assert not ship(folder, parent=None, axis=plan["axis"], arm="baseline", seed=7)
        said = capsys.readouterr().err
        assert said.count("is away") == 1
        assert "127.0.0.1:9" in said
        assert "secret" not in said
        assert "someone" not in said
        with pytest.raises(UserError, match="did not take"):
            command(["replay", str(folder)])
    assert not children(store, plan)
    assert command(["replay", str(folder)]) == 0
    assert command(["replay", str(folder)]) == 0
    (run,) = children(store, plan)
    assert points(store, run) == expected_points(folder)
    assert run.data.tags["mlflow.parentRunId"] == start_sweep(plan)
    end_sweep(run.data.tags["mlflow.parentRunId"], failed=True)
    assert store.get_run(run.data.tags["mlflow.parentRunId"]).info.status == "FAILED"


def test_worker_finds_the_parent_by_the_plan(store, cell):
    """If MLflow was away when the sweep started, the first run that gets through makes the parent."""
    folder, plan = cell
    write_plan_of(folder, plan)
    assert ship(folder, parent=None, axis=plan["axis"], arm="baseline", seed=7)
    assert children(store, plan)[0].data.tags["mlflow.parentRunId"] == start_sweep(plan)


def test_run_of_no_sweep(store, tmp_path):
    config = injection_level(only=["internal-2d"], seeds=[11]).cells[0].config
    folder = write_run(tmp_path / "runs", config, lambda epoch: METRICS)
    assert command(["replay", str(folder)]) == 0
    (run,) = store.search_runs([mlflow_store.experiment_id(store, "")], f"tags.fingerprint = '{folder.name}'")
    assert run.info.run_name == folder.name
    assert "mlflow.parentRunId" not in run.data.tags


def test_missing_sqlite_is_not_created_by_a_worker(cell, monkeypatch, tmp_path, capsys):
    folder, _ = cell
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'absent.db'}")
    assert not ship(folder, parent="0", axis="a", arm="baseline", seed=7)
    assert not (tmp_path / "absent.db").exists()
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [(["send", "x"], "Unknown action 'send'"), (["replay", "nowhere"], "is not a run folder")],
)
def test_command_refuses(argv, message):
    with pytest.raises(UserError, match=message):
        command(argv)


def test_unusable_address(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI is 'file:./mlruns'"):
        mlflow_store.create_store()


def test_relative_sqlite_becomes_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow_store.store_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"


SHIP = """
import sys
from pathlib import Path
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.ship import ship
parent, axis, *folders = sys.argv[1:]
for folder in folders:
    assert ship(RunFolder(Path(folder)), parent=parent, axis=axis, arm="baseline", seed=0)
"""


@pytest.mark.slow  # 20 s on two cores: sixteen Python processes import MLflow
def test_sixteen_processes_at_once(store, tmp_path):
    """Each process sends its own run and that of its neighbour."""
    sweep = injection_level(only=["baseline"], seeds=list(range(100, 116)))
    plan = write_plan(tmp_path / "runs", sweep) | {"axis": "sixteen"}
    folders = [str(write_run(tmp_path / "runs", cell.config, lambda epoch: METRICS)) for cell in sweep.cells]
    parent = start_sweep(plan)
    pairs = zip(folders, folders[1:] + folders[:1], strict=True)
    workers = [subprocess.Popen([sys.executable, "-c", SHIP, parent, "sixteen", *pair]) for pair in pairs]
    assert [worker.wait(timeout=600) for worker in workers] == [0] * 16
    runs = children(store, plan)
    assert len(runs) == 16
    assert all(points(store, run) == expected_points(RunFolder(Path(folders[0]))) for run in runs)


# ---- runs of others, and folders that were moved


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:p@SeCrEt@127.0.0.1:1/", "https://127.0.0.1:1/"),
        ("http://user:a/SeCrEt@127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://127.0.0.1:1/?token=SeCrEt", "http://127.0.0.1:1/?…"),
        ("postgresql://u:SeCrEt@h/x?password=SeCrEt&y=1", "postgresql://h/x?…"),
        ("user:SeCrEt@host", "host"),
        ("no 'user:SeCrEt@host' there", "no 'host' there"),
        ("sqlite:////a/b c.db at 12:30", "sqlite:////a/b c.db at 12:30"),
    ],
)
def test_no_password_is_shown(text, shown):
    assert mlflow_store.redact_credentials(text) == shown


@pytest.mark.parametrize(
    "uri", ["http://user:a/SeCrEt@127.0.0.1:1", "http://", "http://[", "http://127.0.0.1:1/?t=SeCrEt"]
)
def test_an_address_that_is_none_is_away(cell, monkeypatch, capsys, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow_store.create_store()
    folder, _ = cell
    assert not ship(folder, parent=None, axis=None, arm="", seed=7)
    assert "SeCrEt" not in capsys.readouterr().err


def test_a_journal_that_names_a_foreign_file_sends_nothing_of_it(store, cell, tmp_path):
    folder, plan = cell
    (tmp_path / "secret.png").write_text("secret")
    text = folder.journal.path.read_text()
    for name in (str(tmp_path / "secret.png"), "../../secret.png"):
        folder.journal.path.write_text(re.sub(r'"grid": "[^"]*"', f'"grid": "{name}"', text))
        assert ship(folder, parent=start_sweep(plan), axis=plan["axis"], arm="baseline", seed=7)
    (run,) = children(store, plan)
    assert not store.list_artifacts(run.info.run_id, "samples")


def test_replay_ends_the_sweep_of_which_all_runs_have_ended(store, cell):
    folder, plan = cell
    (folder.path.parent / "sweeps").mkdir()
    (folder.path.parent / "sweeps" / "plan.json").write_text(json.dumps(plan))
    parent = start_sweep(plan)
    assert store.get_run(parent).info.status == "RUNNING"
    assert command(["replay", str(folder)]) == 0
    assert store.get_run(parent).info.status == "FINISHED"


def test_runs_of_others_in_the_experiment_are_passed_over(store, cell, capsys):
    folder, plan = cell
    parent = start_sweep(plan)
    ship(folder, parent=parent, axis=plan["axis"], arm="baseline", seed=7)
    experiment = mlflow_store.experiment_id(store, "")
    store.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name="notes")
    other = store.create_run(experiment, tags={"kind": "sweep", "team": "other"})
    (results,) = read_mlflow(parent)
    assert len(results.records) == 5
    assert read_mlflow(other.info.run_id) == []


def test_the_artifacts_of_a_project_that_was_moved_are_beside_its_store(tmp_path, monkeypatch, cell):
    """MLflow notes whole paths. What is read and sent afterwards is not at the former place."""
    folder, plan = cell
    before = tmp_path / "before"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{before}/mlflow.db")
    mlflow_store.create_store()
    parent = start_sweep(plan)
    assert ship(folder, parent=parent, axis=plan["axis"], arm="baseline", seed=7)
    (expected,) = read_mlflow()
    before.rename(tmp_path / "after")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/after/mlflow.db")
    (results,) = read_mlflow()
    assert results.records == expected.records
    assert ship(folder, parent=start_sweep(plan), axis=plan["axis"], arm="baseline", seed=7)
    assert not before.exists()


# ---- known before the first step


@pytest.mark.parametrize("uri", ["file:./mlruns", "mlruns", "postgresql://u:SeCrEt@127.0.0.1:1/x"])
def test_a_store_that_cannot_be_used_is_refused(monkeypatch, here, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="write the address of a server") as refused:
        mlflow_store.create_store()
    assert "SeCrEt" not in str(refused.value)


def test_a_deleted_experiment_and_another_version_are_named(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow_store.create_store()
    client = mlflow_store.connect(uri)
    client.delete_experiment(mlflow_store.experiment_id(client, uri))
    for use in (mlflow_store.create_store, read_mlflow):
        with pytest.raises(UserError, match="was deleted: restore it"):
            use()
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'bd07f7e963c5'")
    connection.close()
    monkeypatch.setattr(mlflow_store, "connect", lambda uri: MlflowClient(f"{uri}?again"))
    with pytest.raises(UserError, match="mlflow db upgrade"):
        mlflow_store.create_store()
