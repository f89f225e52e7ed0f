"""MLflow as teams use it: a server that dies in mid-run, the deployed server on PostgreSQL with a
login, a thousand runs."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mirai_bench.config.load import SWEEPS
from mirai_bench.results.reading import fetch_grid, read_journals, read_mlflow
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import markdown
from mirai_bench.tracking import mlflow_store
from mirai_bench.tracking import ship as ship_module
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.ship import ship, start_sweep
from tests.support.paths import ROOT
from tests.support.servers import POSTGRES, MlflowServer, free_port, postgres
from tests.support.small_sweeps import ARMS, environment, finish, start, sweep_writer
from tests.support.synthetic import injection_level, plan_of, write_plan, write_run


@pytest.mark.slow  # 25 s: a real server, stopped and started again
def test_server_stopped_in_mid_run(tmp_path, monkeypatch):
    sweep = injection_level(only=["baseline"], seeds=[0])
    plan = write_plan(tmp_path / "runs", sweep)
    folder = write_run(
        tmp_path / "runs", sweep.cells[0].config, lambda epoch: {"FD-digits": 10 / epoch, "recall": 0.5}
    )
    whole = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    server = MlflowServer(
        [
            f"--backend-store-uri=sqlite:///{tmp_path / 'server.db'}",
            f"--artifacts-destination={tmp_path / 'artifacts'}",
        ],
        free_port(),
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(ship_module, "MOST_POINTS", 20)
    with server:
        mlflow_store.create_store()
        labels = {"parent": start_sweep(plan), "axis": plan["axis"], "arm": "baseline", "seed": 0}
        (folder / "journal.jsonl").write_text("".join(whole[:8]))
        assert ship(RunFolder(folder), **labels)
        server.kill()
        (folder / "journal.jsonl").write_text("".join(whole[:12]))
        assert not ship(RunFolder(folder), **labels)
        server.start()
        (folder / "journal.jsonl").write_text("".join(whole))
        assert ship(RunFolder(folder), **labels)
        (results,) = read_mlflow()
        pd.testing.assert_frame_equal(results.frame, read_journals(tmp_path / "runs")[0].frame)
        grid = fetch_grid(results, results.records[-1], tmp_path)
        assert grid.read_bytes().startswith(b"\x89PNG") and tmp_path in grid.parents
        client = mlflow_store.connect(server.uri)
        (run,) = mlflow_store.children(
            client, mlflow_store.experiment_id(client, server.uri), client.get_run(labels["parent"])
        )
        for key in ("train/epoch", "train/loss", "eval/FD-digits"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            kind = "train" if key.startswith("train") else "evaluation"
            assert steps == [line["step"] for line in map(json.loads, whole) if line["kind"] == kind]


SECRETS = {  # as in the cluster's Secret
    "username": "mirai",
    "password": "a-password-of-mlflow",
    "postgres-password": "a-password-of-postgres",
    "session-key": "a-session-key",
}


def deployed(kind, name):
    documents = yaml.safe_load_all((SWEEPS / "cluster" / "mlflow_server.yaml").read_text())
    (found,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def variables(container):
    """A container's environment, with the secrets in their places."""
    return {
        e["name"]: e["value"] if "value" in e else SECRETS[e["valueFrom"]["secretKeyRef"]["key"]]
        for e in container["env"]
    }


def deployed_server(tmp_path, database):
    """The server of mlflow_server.yaml, word for word, but for addresses and folders of this
    machine and a single worker."""
    (container,) = deployed("Deployment", "mirai-bench-mlflow")["spec"]["template"]["spec"]["containers"]
    here = {
        "mirai-bench-postgres:5432": f"127.0.0.1:{database}",
        "/artifacts": str(tmp_path / "artifacts"),
        "mirai-bench-mlflow:5000,localhost:5000": f"127.0.0.1:{(port := free_port())}",
        "/etc/mlflow": str(tmp_path),
    }

    def moved(text):
        for there, ours in here.items():
            text = text.replace(there, ours)
        return text

    (tmp_path / "auth.ini").write_text(moved(deployed("ConfigMap", "mirai-bench-mlflow")["data"]["auth.ini"]))
    program, server, *words = container["command"]
    assert (program, server) == ("mlflow", "server")
    words = [moved(word) for word in words if not word.startswith(("--host", "--port", "--workers"))]
    given = {name: moved(value) for name, value in variables(container).items()}
    return MlflowServer(words, port, given, tmp_path / "server.log")


def status_of(address, **headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow  # 1 min: PostgreSQL, MLflow's server and Ray start
@pytest.mark.skipif(POSTGRES is None, reason="needs Debian's package postgresql")
def test_a_sweep_on_the_deployed_server(tmp_path, shared_runs, trained_run, monkeypatch):
    """Two cells train, the table and the grids are read back through the server, and no password is
    left in any file or line."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    file = sweep_writer(folder, shared_runs)({name: ARMS[name] for name in ("baseline", "internal")})
    with postgres(SECRETS["postgres-password"]) as database, deployed_server(tmp_path, database) as server:
        experiments = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
        assert status_of(experiments) == 401, "it wants a login"
        assert status_of(experiments, Host="elsewhere.example.com") == 403, (
            "another name for this address is refused"
        )
        login = {f"MLFLOW_TRACKING_{name.upper()}": SECRETS[name] for name in ("username", "password")}
        login["MLFLOW_TRACKING_URI"] = server.uri
        code, out, err = finish(start(file, **login))
        assert code == 0 and "away" not in err, err
        for name, value in login.items():
            monkeypatch.setenv(name, value)
        (results,) = read_mlflow()
        assert [cell["status"] for cell in results.cells] == ["done", "done"]
        assert markdown(build_table(results)).strip() == out.strip(), (
            "as the driver printed it from the journals"
        )
        for record in results.records:
            local = folder / "runs" / record["run"]["fingerprint"] / record["grid"]
            assert fetch_grid(results, record, tmp_path).read_bytes() == local.read_bytes()
        script = [sys.executable, ROOT / "analysis" / "fid_table.py", "--out", folder / "reports"]
        table = subprocess.run(
            script, cwd=folder, env=environment(folder, **login), capture_output=True, text=True
        )
        assert table.returncode == 0 and table.stdout.strip() == out.strip(), table.stderr
        assert list((tmp_path / "artifacts").rglob("epoch_*.png")), (
            "artifacts went through the server to its own folder"
        )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert folder / "runs" / results.records[0]["run"]["fingerprint"] / "config.json" in written
    for secret in (SECRETS[name] for name in ("password", "postgres-password", "session-key")):
        assert secret not in out + err + table.stdout + table.stderr
        assert not [path for path in written if secret.encode() in path.read_bytes()]


def thousand_runs(folder, monkeypatch):
    """A store with one run that was really sent, and 999 more: its rows and artifacts again, with
    other seeds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    mlflow_store.create_store()
    sweep = injection_level(seeds=list(range(200)))
    plan, (first, *others) = plan_of(sweep), sweep.cells
    run_dir = write_run(
        folder / "runs",
        first.config,
        lambda epoch: {"FD-digits": 10 / epoch, "recall": 0.5, "precision": 0.5},
    )
    parent = start_sweep(plan)
    assert ship(RunFolder(run_dir), parent=parent, axis=plan["axis"], arm=first.arm, seed=first.seed)
    with sqlite3.connect(folder / "mlflow.db") as database:
        run, where = database.execute(
            "SELECT run_uuid, artifact_uri FROM runs WHERE name = 'baseline-s0'"
        ).fetchone()
        points = database.execute("SELECT count(*) FROM metrics").fetchone()[0]
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            rows = [
                dict(zip(names, row, strict=True))
                for row in database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run,))
            ]
            copies = [
                [changed(row, number, cell)[name] for name in names]
                for number, cell in enumerate(others)
                for row in rows
            ]
            database.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(names))})", copies)
    source = Path(where.removeprefix("file://"))
    for number in range(len(others)):
        shutil.copytree(source, Path(str(source).replace(run, f"{number:032x}")))
    database.close()
    return points


def changed(row, number, cell):
    tag = {"fingerprint": cell.fingerprint, "arm": cell.arm, "seed": str(cell.seed)}.get(row.get("key"))
    new = {"run_uuid": f"{number:032x}", "value": row.get("value") if tag is None else tag}
    if "artifact_uri" in row:
        new["artifact_uri"] = row["artifact_uri"].replace(row["run_uuid"], new["run_uuid"])
    return row | new


@pytest.mark.slow  # 30 s to write them
def test_a_thousand_runs_are_read_and_tabulated_in_ten_seconds(tmp_path, monkeypatch):
    points = thousand_runs(tmp_path, monkeypatch)
    assert points >= 100
    start = time.process_time()  # not wall-clock: other tests may share the machine
    (results,) = read_mlflow()
    table = markdown(build_table(results))
    assert time.process_time() - start < 10
    assert len(results.frame) == 5 * 1000 and [cell["status"] for cell in results.cells] == ["done"] * 1000
    assert "| 200 |" in table
