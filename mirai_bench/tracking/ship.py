"""From run folders to MLflow: one parent run per sweep, one child per arm and seed. MLflow is a view of the journal, never its source.

    python -m mirai_bench.tracking replay RUN…        sends what MLflow does not have yet

What was already sent is read from MLflow itself each time: a batch holds whole journal lines, the server stores a batch in one
transaction, and lines go in order, so the newest `train/epoch` and `eval/epoch` there say exactly which lines it has. A process killed
between sending and noting can therefore neither lose nor double a point.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.mlflow_store import experiment_id, unless_away
from mirai_bench.tracking.records import MEASURED, pack

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run


BATCH = 1000  # points in one log_batch: MLflow's limit


PREFIX = {"train": "train/", "evaluation": "eval/"}


LOCAL_PATHS = {"runs", "data", "codes", "assets"}  # of the machine, nothing to a reader of config.yaml


def start_sweep(plan: Mapping[str, Any]) -> str | None:
    """The parent run of this plan (axis, question, baseline, profile, arms, cells), made or found again; None while MLflow is away."""

    def send(client: MlflowClient, uri: str) -> str:
        experiment = experiment_id(client, uri)
        tags = {"kind": "sweep", "axis": plan["axis"], "profile": plan["profile"]}
        sweeps = client.search_runs(
            [experiment], "tags.kind = 'sweep'", order_by=["attributes.start_time ASC"]
        )
        same = [
            sweep for sweep in sweeps if all(sweep.data.tags[key] == value for key, value in tags.items())
        ]
        name = f"{plan['axis']} ({plan['profile']})"
        parent = (same or [client.create_run(experiment, tags=tags, run_name=name)])[0].info.run_id
        for key in ("question", "baseline"):
            client.set_tag(parent, key, plan[key])
        client.set_tag(parent, "mlflow.note.content", plan["question"])
        client.log_text(parent, json.dumps(dict(plan), indent=1), "plan.json")
        client.update_run(parent, status="RUNNING")
        return parent

    return unless_away(send)


def end_sweep(parent: str | None, *, failed: bool = False) -> None:
    """Marks the parent FINISHED, or FAILED where a cell failed."""
    if parent is not None:
        unless_away(lambda client, uri: client.set_terminated(parent, "FAILED" if failed else "FINISHED"))


def ship(run_dir: Path, *, parent: str | None, axis: str | None, arm: str, seed: int) -> bool:
    """Sends what MLflow does not have yet of this run; True if it now has everything. Any number of processes may call it at any time.

    The run is found by parent, arm and fingerprint: one run folder can stand under several sweeps. Without a parent (MLflow was away
    when the sweep started) it is made from the plan beside the run; axis None is a run of its own. Returns False, having said it
    once, while MLflow is away.
    """

    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    plan = run_dir.parent / "sweeps" / f"{axis}-{config['profile']}.json"

    def send(client: MlflowClient, uri: str) -> bool:
        lines = list(read_journal(run_dir / "journal.jsonl"))
        tags = {"kind": "run", "seed": str(seed), "fingerprint": run_dir.name, "profile": config["profile"]}
        tags |= {} if axis is None else {"axis": axis, "arm": arm}
        tags |= {} if parent is None else {"mlflow.parentRunId": parent}
        found = _find_or_create(client, experiment_id(client, uri), tags, lines)
        _send_params(client, found, config)
        for batch in _batches(_new_lines(found, lines)):
            client.log_batch(found.info.run_id, metrics=batch)
        _send_artifacts(client, found.info.run_id, run_dir, config, lines)
        _send_status(client, found, run_dir, lines)
        return True

    if parent is None and plan.is_file():
        with FileLock(plan.with_suffix(".mlflow.lock")):
            parent = start_sweep(json.loads(plan.read_text(encoding="utf-8")))
        if parent is None:
            return False
    with FileLock(run_dir / "mlflow.lock"):
        return bool(unless_away(send))


def _find_or_create(
    client: MlflowClient, experiment: str, tags: dict[str, str], lines: list[dict[str, Any]]
) -> Run:
    for found in client.search_runs([experiment], f"tags.fingerprint = '{tags['fingerprint']}'"):
        if all(found.data.tags.get(key) == tags.get(key) for key in ("mlflow.parentRunId", "arm")):
            return found
    git = next((line["git"] for line in lines if line.get("git")), {})
    tags |= {f"git_{key}": str(value) for key, value in git.items() if value is not None}
    name = f"{tags['arm']}-s{tags['seed']}" if "arm" in tags else tags["fingerprint"]
    start = int(lines[0]["time"] * 1000) if lines else None
    return client.create_run(experiment, start_time=start, tags=tags, run_name=name)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"train": {"lr": 0.1}} → {"train.lr": "0.1"}; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _send_params(client: MlflowClient, found: Run, config: dict[str, Any]) -> None:
    """Once: MLflow refuses a changed parameter, and `machine` may change between two parts of one run."""
    from mlflow.entities import Param

    flat = flatten({key: value for key, value in config.items() if key != "machine"})
    missing = [Param(key, value[:6000]) for key, value in flat.items() if key not in found.data.params]
    for start in range(0, len(missing), 100):  # MLflow's limit
        client.log_batch(found.info.run_id, params=missing[start : start + 100])


def _new_lines(found: Run, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines after those that MLflow has. A resumed run writes some steps again: the first value sent stays."""
    sent = {kind: found.data.metrics.get(f"{prefix}epoch", -1.0) for kind, prefix in PREFIX.items()}
    return (line for line in lines if line["kind"] in PREFIX and line["epoch"] > sent[line["kind"]])


def _batches(lines: Iterator[dict[str, Any]]) -> Iterator[list[Metric]]:
    """Whole lines, at most BATCH points."""
    batch: list[Metric] = []
    for line in lines:
        points = _points(line)
        if len(batch) + len(points) > BATCH:
            yield batch
            batch = []
        batch += points
    if batch:
        yield batch


def _points(line: dict[str, Any]) -> list[Metric]:
    from mlflow.entities import Metric

    """All numbers of a train line; the metrics and costs of an evaluation."""
    measured = line.items() if line["kind"] == "train" else [(key, line.get(key)) for key in MEASURED]
    values = {key: value for key, value in measured if key not in ("time", "step")} | line.get("metrics", {})
    when = int(line["time"] * 1000)
    return [
        Metric(PREFIX[line["kind"]] + re.sub(r"[^\w.\- :/]", "_", key), float(value), when, line["step"])
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _send_artifacts(
    client: MlflowClient, run_id: str, run_dir: Path, config: dict[str, Any], lines: list[dict[str, Any]]
) -> None:
    """config.yaml, records.jsonl (every evaluation so far, packed) and the sample grids; a file of the same size is there already."""
    there = {
        info.path: info.file_size
        for folder in (None, "samples")
        for info in client.list_artifacts(run_id, folder)
    }
    kept = config | {
        "machine": {key: value for key, value in config["machine"].items() if key not in LOCAL_PATHS}
    }
    records = [line for line in lines if line["kind"] == "evaluation"]
    texts = {
        "config.yaml": yaml.safe_dump(kept, sort_keys=False),
        "records.jsonl": "".join(json.dumps(line) + "\n" for line in pack(records)),
    }
    for name, text in texts.items():
        if text and there.get(name) != len(text.encode()):
            client.log_text(run_id, text, name)
    for record in records:
        grid = run_dir / record["grid"] if record.get("grid") else None
        if grid is not None and grid.is_file() and there.get(f"samples/{grid.name}") != grid.stat().st_size:
            client.log_artifact(run_id, str(grid), "samples")


def _send_status(client: MlflowClient, found: Run, run_dir: Path, lines: list[dict[str, Any]]) -> None:
    failed = run_dir / "failed.json"
    status = "FINISHED" if (run_dir / "done.json").is_file() else "FAILED" if failed.is_file() else "RUNNING"
    if status == "FAILED":
        client.set_tag(
            found.info.run_id, "failed", json.loads(failed.read_text(encoding="utf-8"))["reason"][:4000]
        )
    if status != found.info.status:
        if status == "RUNNING":
            client.update_run(found.info.run_id, status=status)
        else:
            client.set_terminated(found.info.run_id, status, int(lines[-1]["time"] * 1000) if lines else None)
