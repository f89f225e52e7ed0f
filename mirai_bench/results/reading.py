"""Reads the records of sweeps from run folders or from MLflow. results/frozen.py reads frozen files."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mirai_bench.results.frame import Results
from mirai_bench.results.frozen import PLAN
from mirai_bench.tracking import artifacts, mlflow_store
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.records import (
    pack,
    read_plan,
    read_plans,
    unpack,
)
from mirai_bench.tracking.run_folder import GRIDS, RunFolder
from mirai_bench.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

STATUS = {"FINISHED": "done", "FAILED": "failed", "KILLED": "failed", "RUNNING": "running"}


class Found(NamedTuple):
    """What is known of the run of a cell."""

    status: str
    lines: Iterable[dict[str, Any]]
    """Packed lines, as tracking/records.py describes them."""
    source: Path | str
    """The folder of the run or of its artifacts, or its MLflow run id."""


def _from_plan(plan: dict[str, Any], runs: Iterable[Found | None]) -> Results:
    """Returns the results of a plan. `runs` holds what is known of each of its cells."""
    fields = {key: plan[key] for key in PLAN if key in plan}
    results = Results(**fields | {"cells": []})
    for cell, found in zip(plan["cells"], runs, strict=True):
        own = {key: cell[key] for key in ("arm", "seed", "fingerprint")}
        # A cell of which nothing is known has not been started.
        results.cells.append(own | {"status": found.status if found else "pending"})
        if found:
            results.sources[cell["fingerprint"]] = found.source
            results.records += unpack(found.lines, arm=cell["arm"], seed=cell["seed"])
    return results


# ---- run folders


def read_journals(runs: Path, axis: str | None = None, profile: str | None = None) -> list[Results]:
    """Returns every sweep that was planned in this folder of runs.

    With `axis` or `profile` only theirs. The records come from the journals of the runs.
    """
    results = []
    for plan in read_plans(runs):
        if axis in (None, plan["axis"]) and profile in (None, plan["profile"]):
            folders = [RunFolder(runs / cell["fingerprint"]) for cell in plan["cells"]]
            results.append(_from_plan(plan, map(_in_folder, folders)))
    return results


def _in_folder(folder: RunFolder) -> Found:
    folder.warn_of_lost_lines()
    return Found(folder.state, pack(folder.journal.lines("evaluation")), folder.path)


# ---- MLflow


@contextmanager
def _garbage_is_kept() -> Iterator[None]:
    """Disables the garbage collector: it takes half of the time of reading 1,000 runs from MLflow."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def read_mlflow(sweep: str | None = None) -> list[Results]:
    """Returns every sweep in the store, or the one of a parent run.

    Returns an empty list if there is no store. Raises UserError if the server does not answer.
    """
    # 1. The store. Without one there is nothing to read; a server that is away has something.
    uri = mlflow_store.store_uri()
    if not mlflow_store.is_reachable(uri):
        if uri.startswith("http"):
            raise UserError(
                f"MLflow at {mlflow_store.redact_credentials(uri)} does not answer: start it, or "
                "read run folders with --runs FOLDER"
            )
        return []
    # 2. Its sweeps, the oldest first: each of them is a parent run.
    client = mlflow_store.connect(uri)
    experiment = mlflow_store.experiment_id(client, uri)
    oldest_first = ["attributes.start_time ASC"]
    results = []
    with _garbage_is_kept(), tempfile.TemporaryDirectory() as scratch:
        for parent in client.search_runs([experiment], "tags.kind = 'sweep'", order_by=oldest_first):
            if sweep in (None, parent.info.run_id):
                results.append(_read_sweep(client, experiment, parent, Path(scratch)))
    return [found for found in results if found is not None]


def _read_sweep(client: MlflowClient, experiment: str, parent: Run, scratch: Path) -> Results | None:
    # 1. The plan, which is sent a moment after its parent run was made. Others may have runs of
    # their own in the experiment, which have none of ours.
    if not {"axis", "profile"} <= parent.data.tags.keys():
        return None
    path = artifacts.artifact(client, parent, "plan.json", scratch)
    if not path.is_file():
        log.warning(f"{parent.info.run_name} is left out: it has no plan yet (looked at {path})")
        return None
    plan, wrong = read_plan(path)
    if plan is None:
        log.warning(f"{parent.info.run_name} is left out: {path} is not the plan of a sweep ({wrong})")
        return None
    # 2. The child runs. An arm whose configuration was changed has children of both fingerprints.
    runs = {}
    for run in mlflow_store.children(client, experiment, parent):
        tags = run.data.tags
        if tags.get("kind") == "run" and {"arm", "fingerprint"} <= tags.keys():
            runs[tags["arm"], tags["fingerprint"]] = run

    def find(cell: dict[str, Any]) -> Found | None:
        run = runs.get((cell["arm"], cell["fingerprint"]))
        if run is None:
            return None
        status = STATUS.get(run.info.status, "running")
        if "eval/epoch" not in run.data.metrics:  # nor are there records, then, to ask for
            return Found(status, (), run.info.run_id)
        file = artifacts.artifact(client, run, "records.jsonl", scratch)
        is_here = scratch not in file.parents
        return Found(status, read_journal(file), file.parent if is_here else run.info.run_id)

    # 3. Their records. On a server each is a request, hence the threads.
    with ThreadPoolExecutor(16) as pool:
        return _from_plan(plan, pool.map(find, plan["cells"]))


def fetch_grid(results: Results, record: dict[str, Any], scratch: Path) -> Path | None:
    """Returns the sample grid of a record, or None if there is none.

    It is downloaded into `scratch` if it is not on this machine.
    """
    source = results.sources.get(record["run"]["fingerprint"])
    if source is None or not record.get("grid"):
        return None
    # Only the last part of the name, so that no record points elsewhere.
    grid = f"{GRIDS}/{Path(record['grid']).name}"
    if isinstance(source, Path):
        return source / grid if (source / grid).is_file() else None
    client = mlflow_store.connect(mlflow_store.store_uri())
    return artifacts.download(client, source, grid, scratch)
