"""From run folders to MLflow: one parent run per sweep, and one child run per arm and seed.

What was already sent is read from MLflow itself each time. A batch holds whole journal lines, the
server stores a batch in one transaction, and lines are sent in order, so the newest `train/epoch`
and `eval/epoch` there say exactly which lines it has. A process that is killed between sending and
taking note can therefore neither lose nor double a point.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from mirai_bench.tracking.artifacts import artifact_sizes, send_artifact
from mirai_bench.tracking.diagnoses import diagnoses_of
from mirai_bench.tracking.mlflow_store import MOST_POINTS, experiment_id, send_or_skip
from mirai_bench.tracking.points import PREFIX, allowed, points_of
from mirai_bench.tracking.records import pack
from mirai_bench.tracking.run_folder import GRIDS, RunFolder
from mirai_bench.utils.assets import LOCAL_FOLDERS
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import locked
from mirai_bench.utils.hashing import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

log = logging.getLogger(__name__)

Lines = list[dict[str, Any]]
"""The lines of a journal."""

MOST_PARAMS = 100  # in one log_batch: MLflow's limit
MOST_OF_TAG = 4000  # characters of a tag
MOST_CHARACTERS = 6000  # of one parameter: MLflow's limit
# MLflow's word for the state of a run folder. It has none for a run that waits to be continued.
STATUS = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING", "pending": "RUNNING"}


# ---- the parent run


def start_sweep(plan: Mapping[str, Any]) -> str | None:
    """Creates or finds the parent run of a plan and returns its id, or None if MLflow is away.

    The plan has axis, question, baseline, profile, arms and cells.
    """

    def send(client: MlflowClient, uri: str) -> str:
        tags = {"kind": "sweep", "axis": plan["axis"], "profile": plan["profile"]}
        experiment = experiment_id(client, uri)
        parent = find_parent(client, experiment, tags)
        if parent is None:
            name = f"{plan['axis']} ({plan['profile']})"
            # Later commands leave the note alone, which by then may be the sweep's table.
            note = {"mlflow.note.content": plan["question"]}
            parent = client.create_run(experiment, tags=tags | note | made_by(), run_name=name)
        # What may have changed since the last command is sent again.
        run_id = parent.info.run_id
        client.set_tag(run_id, "question", plan["question"])
        client.set_tag(run_id, "baseline", plan["baseline"])
        if plan.get("settings"):
            client.set_tag(run_id, "set", " ".join(plan["settings"])[:MOST_OF_TAG])
        send_artifact(client, parent, "plan.json", json.dumps(dict(plan), indent=1))
        client.update_run(run_id, status="RUNNING")
        return run_id

    return send_or_skip(send)


def find_parent(client: MlflowClient, experiment: str, tags: dict[str, str]) -> Run | None:
    """Returns the oldest run with these tags, of which one is its kind."""
    # Two processes may have made one each. All then take the same one.
    oldest_first = ["attributes.start_time ASC"]
    found = client.search_runs([experiment], f"tags.kind = '{tags['kind']}'", order_by=oldest_first)
    return next((run for run in found if tags.items() <= run.data.tags.items()), None)


def end_sweep(parent: str | None, *, failed: bool = False) -> None:
    """Marks the parent run FINISHED, or FAILED if a cell failed."""
    if parent is not None:
        status = "FAILED" if failed else "FINISHED"
        send_or_skip(lambda client, uri: client.set_terminated(parent, status))


# ---- one run


def ship(
    folder: RunFolder,
    *,
    parent: str | None,
    axis: str | None,
    arm: str,
    seed: int,
    stopped_early: bool = False,
) -> bool:
    """Sends what MLflow does not have yet of this run.

    Any number of processes may call it at any time.

    The run is found by parent, arm and fingerprint, because one run folder can belong to several
    sweeps. If MLflow was away when the sweep started, there is no parent, and it is made from the
    plan in the folder of runs. A run without an `axis` belongs to no sweep. One that was `stopped_early`
    and has not ended is marked so: nobody continues it.

    Returns True if MLflow now has everything. Returns False, after one warning, if MLflow is away.
    """
    # 1. The parent run.
    config = folder.config_fields()
    plan = folder.path.parent / "sweeps" / f"{axis}-{config['profile']}.json"
    if parent is None and plan.is_file():
        # Locked, because all runs of the sweep may ask for it at the same time.
        with locked(plan.with_suffix(".mlflow.lock"), wait=True):
            parent = start_sweep(json.loads(plan.read_text(encoding="utf-8")))
        if parent is None:
            return False
    # 2. What the run is found by.
    tags = {"kind": "run", "seed": str(seed), "fingerprint": folder.path.name}
    tags["profile"] = config["profile"]
    if axis is not None:
        tags |= {"axis": axis, "arm": arm}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent

    # 3. Everything else.
    def send(client: MlflowClient, uri: str) -> bool:
        # The state is read first: a run that ends now is sent once more.
        state = folder.state
        lines = list(folder.journal.lines())
        run = _child_run(client, experiment_id(client, uri), tags, lines, config)
        _send_params(client, run, config)
        for batch in _batches(_new_lines(run, lines)):
            client.log_batch(run.info.run_id, metrics=batch)
        _send_artifacts(client, run, folder, config, lines)
        _send_diagnoses(client, run, folder)
        status = "KILLED" if stopped_early and state == "pending" else STATUS[state]
        _mark(client, run, folder, status, lines)
        return True

    with folder.mlflow_lock():  # two senders would both see the same lines missing
        return bool(send_or_skip(send))


def _child_run(
    client: MlflowClient, experiment: str, tags: dict[str, str], lines: Lines, config: dict[str, Any]
) -> Run:
    """Returns the run with these tags, which is created if there is none."""
    for found in client.search_runs([experiment], f"tags.fingerprint = '{tags['fingerprint']}'"):
        # Absent tags are compared, too: a run of no sweep is not one of a sweep.
        if all(found.data.tags.get(key) == tags.get(key) for key in ("mlflow.parentRunId", "arm")):
            return found
    git: dict[str, Any] = next((line["git"] for line in lines if line.get("git")), {})
    of_git = {f"git_{key}": str(value) for key, value in git.items() if value is not None}
    name = f"{tags['arm']}-s{tags['seed']}" if "arm" in tags else tags["fingerprint"]
    start = int(lines[0]["time"] * 1000) if lines else None  # ms since 1970, as MLflow counts
    all_tags = tags | of_git | made_by()
    run = client.create_run(experiment, start_time=start, tags=all_tags, run_name=name)
    client.log_inputs(run.info.run_id, [dataset_of(config)])
    return run


def made_by() -> dict[str, str]:
    """Returns the tags from which MLflow's page takes who made a run, and with what."""
    tags = {"mlflow.source.name": "mirai_bench", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name, as in containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def dataset_of(config: dict[str, Any]) -> DatasetInput:
    """Returns what MLflow's page shows as the dataset: its name, and a digest of what decides the codes."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = config["data"]
    name = data["name"] if data["dataset"] == "folder" else data["dataset"]
    of_codes = digest({"data": data, "tokenizer": config["tokenizer"]})
    dataset = Dataset(name, of_codes, "local", json.dumps({"dataset": name}), None, None)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns the leaves of a tree: {"train": {"lr": 0.1}} becomes {"train.lr": "0.1"}.

    Lists become JSON.
    """
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _send_params(client: MlflowClient, run: Run, config: dict[str, Any]) -> None:
    """Sends the parameters once, and without `machine`.

    MLflow rejects a changed parameter, and `machine` may change when a run is resumed.
    """
    from mlflow.entities import Param

    flat = flatten({key: value for key, value in config.items() if key != "machine"})
    known = run.data.params
    missing = [Param(key, flat[key][:MOST_CHARACTERS]) for key in flat if key not in known]
    for start in range(0, len(missing), MOST_PARAMS):
        client.log_batch(run.info.run_id, params=missing[start : start + MOST_PARAMS])


def _new_lines(run: Run, lines: Lines) -> Iterator[dict[str, Any]]:
    """Yields the lines after those that MLflow has.

    A resumed run writes some steps again; the first value that was sent stays.
    """
    sent = {kind: run.data.metrics.get(f"{prefix}epoch", -1.0) for kind, prefix in PREFIX.items()}
    for line in lines:
        if line["kind"] in PREFIX and line["epoch"] > sent[line["kind"]]:
            yield line


def _batches(lines: Iterable[dict[str, Any]]) -> Iterator[list[Metric]]:
    """Yields the points of whole lines, as many at a time as MLflow takes."""
    batch: list[Metric] = []
    for line in lines:
        points = _points(line)
        if len(batch) + len(points) > MOST_POINTS:
            yield batch
            batch = []
        batch += points
    if batch:
        yield batch


def _points(line: dict[str, Any]) -> list[Metric]:
    from mlflow.entities import Metric

    when = int(line["time"] * 1000)
    return [Metric(name, value, when, line["step"]) for name, value in points_of(line).items()]


def _send_diagnoses(client: MlflowClient, run: Run, folder: RunFolder) -> None:
    """Sends the values of diagnoses as metrics diagnose/NAME/VALUE, each diagnosis once.

    A tag diagnose.NAME.STEP, set in the same batch, has the digest of what was sent. Of several
    digests (another scope, another version) the newest counts.
    """
    from mlflow.entities import Metric, RunTag

    try:
        lines = diagnoses_of(folder)
    except UserError as error:  # which holds up nothing else
        log.warning(f"not sent to MLflow: {error}")
        return
    newest = {(line["diagnostic"], line["step"]): line for line in lines}
    for (name, step), line in newest.items():
        tag = RunTag(f"diagnose.{name}.{step}", line["digest"])
        if run.data.tags.get(tag.key) == tag.value:
            continue
        when = int(line["time"] * 1000)
        points = [
            Metric(f"diagnose/{name}/{allowed(key)}", float(value), when, step)
            for key, value in line["values"].items()
        ]
        # The tag goes with the last part. A part that is sent twice has the same points, which the
        # store keeps once.
        parts = [points[start : start + MOST_POINTS] for start in range(0, len(points), MOST_POINTS)]
        for part in parts[:-1]:
            client.log_batch(run.info.run_id, metrics=part)
        client.log_batch(run.info.run_id, metrics=parts[-1] if parts else [], tags=[tag])


def _send_artifacts(
    client: MlflowClient, run: Run, folder: RunFolder, config: dict[str, Any], lines: Lines
) -> None:
    """Sends config.yaml, records.jsonl (every evaluation so far, packed) and the sample grids.

    A file of the same size is there already.
    """
    # 1. What is there. Sizes tell enough: records only grow, and a grid is never drawn again.
    sizes = artifact_sizes(client, run, GRIDS)
    # 2. The texts.
    machine = {key: value for key, value in config["machine"].items() if key not in LOCAL_FOLDERS}
    records = [line for line in lines if line["kind"] == "evaluation"]
    texts = {
        "config.yaml": yaml.safe_dump(config | {"machine": machine}, sort_keys=False),
        "records.jsonl": "".join(json.dumps(line) + "\n" for line in pack(records)),
    }
    for name, text in texts.items():
        if text and sizes.get(name) != len(text.encode()):
            send_artifact(client, run, name, text)
    # 3. The grids, which a user may have deleted to save space.
    for grid in filter(None, map(folder.grid_of, records)):
        name = f"{GRIDS}/{grid.name}"
        if sizes.get(name) != grid.stat().st_size:
            send_artifact(client, run, name, grid)


def _mark(client: MlflowClient, run: Run, folder: RunFolder, status: str, lines: Lines) -> None:
    """Marks the run finished, failed or running, with the reason of a failure."""
    failure = folder.failure()
    if status == "FAILED" and failure is not None:
        client.set_tag(run.info.run_id, "failed", failure.reason[:MOST_OF_TAG])
        if failure.traceback is not None:
            send_artifact(client, run, "traceback.txt", failure.traceback)
    if status == run.info.status:
        return
    if status == "RUNNING":
        client.update_run(run.info.run_id, status=status)
    else:  # when it ended, and not when it is sent
        end = int(lines[-1]["time"] * 1000) if lines else None
        client.set_terminated(run.info.run_id, status, end)
