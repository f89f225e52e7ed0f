"""MLflow under four sweeps at once while its server is killed, and while its sqlite file is locked:
every point of every journal arrives once."""

import json
import random
import sqlite3
import time
from collections import Counter

import pytest

from mirai_bench.sweep.plan import folder_of
from mirai_bench.tracking import mlflow_store
from tests.support.servers import MlflowServer, free_port
from tests.support.small_sweeps import ARMS, LONGER, SAVES, finish, plan_at, start, sweep_writer

pytestmark = pytest.mark.nightly

SWEEPS = 4
LONGEST = 3600.0  # seconds of one sweep
KILLS = 5  # of the server
LOCKS = 5  # of the sqlite file
LOCKED_SECONDS = (1.0, 12.0)


def four_sweeps(tmp_path, shared_runs):
    """Writes four sweeps of two cells each, with axes, folders and seeds of their own."""
    files = []
    for number in range(SWEEPS):
        folder = tmp_path / f"sweep{number}"
        folder.mkdir()
        arms = {name: ARMS[name] for name in ("baseline", "internal")}
        file = sweep_writer(folder, shared_runs)(arms, seeds=(number,), **LONGER, **SAVES)
        file.write_text(file.read_text().replace("axis: small", f"axis: small{number}"))
        files.append(file)
    return files


def check_points(files, uri, monkeypatch):
    """Checks that MLflow has every line of every journal once. Returns the number of points."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_store.connect(uri)
    experiment = mlflow_store.experiment_id(client, uri)
    points = 0
    for file in files:
        for cell in plan_at(file).sweep.cells:
            folder = folder_of(cell)
            assert folder.state == "done"
            (run,) = client.search_runs([experiment], f"tags.fingerprint = '{folder.path.name}'")
            assert run.info.status == "FINISHED"
            lines = list(folder.journal.lines())
            for key, kind in (("train/loss", "train"), ("eval/FD-digits", "evaluation")):
                found = [point.step for point in client.get_metric_history(run.info.run_id, key)]
                assert found == [line["step"] for line in lines if line["kind"] == kind], json.dumps(found)
                points += len(found)
    return points


def wait_for(drivers, step):
    """Calls `step` until all drivers have ended, and checks that they ended well."""
    while any(driver.poll() is None for driver in drivers):
        step()
        time.sleep(1)
    for driver in drivers:
        code, out, err = finish(driver, LONGEST)
        assert code == 0 and "Traceback" not in err, err[-4000:]
        assert "| baseline |" in out


def test_a_server_that_is_killed_during_four_sweeps(tmp_path, shared_runs, trained_run, monkeypatch, figures):
    files = four_sweeps(tmp_path, shared_runs)
    words = [f"--backend-store-uri=sqlite:///{tmp_path / 'server.db'}"]
    words.append(f"--artifacts-destination={tmp_path / 'artifacts'}")
    server = MlflowServer(words, free_port(), log=tmp_path / "server.log")
    draw = random.Random(0)
    kills = Counter()
    with server:
        drivers = [start(file, "--max-concurrent", "1", MLFLOW_TRACKING_URI=server.uri) for file in files]

        def kill_and_restart():
            if kills.total() < KILLS:
                time.sleep(draw.uniform(5, 20))
                server.kill()
                time.sleep(draw.uniform(0, 10))
                server.start()
                kills["server"] += 1

        wait_for(drivers, kill_and_restart)
        # What was not sent while it was away is sent by the same command.
        for file in files:
            code, _, err = finish(start(file, MLFLOW_TRACKING_URI=server.uri), LONGEST)
            assert code == 0, err
        points = check_points(files, server.uri, monkeypatch)
    figures(f"{SWEEPS} sweeps, {kills.total()} kills of the server: {points} points, each once")
    assert kills.total() == KILLS


def test_an_sqlite_file_that_is_locked_during_four_sweeps(
    tmp_path, shared_runs, trained_run, monkeypatch, figures
):
    files = four_sweeps(tmp_path, shared_runs)
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow_store.create_store()
    draw = random.Random(0)
    locks = Counter()
    drivers = [start(file, "--max-concurrent", "1", MLFLOW_TRACKING_URI=uri) for file in files]

    def lock():
        if locks.total() < LOCKS:
            time.sleep(draw.uniform(2, 10))
            connection = sqlite3.connect(database, timeout=60, isolation_level=None)
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(draw.uniform(*LOCKED_SECONDS))
            connection.execute("COMMIT")
            connection.close()
            locks["sqlite"] += 1

    wait_for(drivers, lock)
    points = check_points(files, uri, monkeypatch)
    figures(
        f"{SWEEPS} sweeps, {locks.total()} locks of up to {LOCKED_SECONDS[1]:g} s: {points} points, each once"
    )
    assert locks.total() == LOCKS
