"""Reads the records of sweeps: from run folders, from MLflow, or from frozen files."""

from __future__ import annotations

import gc
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mirai_bench.results.configs import refuse_other_configs
from mirai_bench.results.frame import Results, refuse_mixed_protocols
from mirai_bench.tracking import artifacts, mlflow_store
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.records import (
    MEASURED,
    PROVENANCE,
    EvaluationFields,
    PlanFields,
    RunFields,
    pack,
    problem,
    read_plan,
    read_plans,
    unpack,
)
from mirai_bench.tracking.run_folder import GRIDS, RunFolder
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from pydantic import BaseModel

log = logging.getLogger(__name__)

PROGRESS = ("pending", "running", "failed", "done")  # states of a cell, the furthest one last
STATUS = {"FINISHED": "done", "FAILED": "failed", "KILLED": "failed", "RUNNING": "running"}
# Fields of Results in a plan and in a frozen file. Older ones have nothing registered and nothing set.
PLAN = ("axis", "profile", "question", "baseline", "arms", "cells", "registered", "settings")


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


# ---- frozen files


def freeze(results: Results, path: Path) -> None:
    """Writes the records behind a table or figure as JSON lines.

    Raises UserError if the file has records of cells that these results lack, which would be lost.
    """
    if path.is_file():
        lost = _cells_with_records(read_jsonl([path])[0]) - _cells_with_records(results)
        first = (
            f"bring them into the folder of runs (python -m mirai_bench.sweep FILE --records {path}, "
            "with the seeds of both)"
        )
        refuse_loss(path, lost, first)
    write_lines(path, frozen_lines(results, "sweep"))


def refuse_loss(path: Path, lost: Iterable[tuple[str, int]], instead: str) -> None:
    """Raises UserError if cells (arm, seed) of a frozen file would be lost. `instead` says what to do."""
    cells = sorted(lost)
    if cells:
        arm, seed = cells[0]
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        raise UserError(
            f"{path} has records of {arm}, seed {seed}{more}, which would be lost: {instead}, or move "
            "the file away"
        )


def frozen_lines(results: Results, kind: str) -> list[dict[str, Any]]:
    """Returns the lines of a frozen file.

    The sweep comes first, in a line of this kind, then each run once, followed by its evaluations.
    """
    refuse_mixed_protocols(results)
    fields = {key: getattr(results, key) for key in PLAN}
    lines = [{"kind": kind} | {key: value for key, value in fields.items() if value not in ({}, [])}]
    # What the evaluations of a run share is one object (`unpack`), which is written when it changes.
    last = None
    for record in results.records:
        cell = {"arm": record["arm"], "seed": record["seed"]}
        if record["run"] is not last:
            last = record["run"]
            lines.append({"kind": "run"} | cell | last)
        # Without the grid, an image in a run folder that a reader of the file does not have.
        own = {key: record[key] for key in MEASURED if key in record and key != "grid"}
        lines.append({"kind": "evaluation", "axis": results.axis} | cell | own)
    return lines


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines, and makes their folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_jsonl(paths: Iterable[Path]) -> list[Results]:
    """Returns the sweeps of frozen files.

    Files of one sweep (other seeds, another machine) are joined. Raises UserError for a file of
    another kind, if two files have records of the same cell, or if seeds of an arm are of two
    configurations.
    """
    found: dict[tuple[str, str], Results] = {}
    for path in paths:
        with frozen_file(path) as (head, lines):
            more = thawed(head, lines)
        key = (more.axis, more.profile)
        found[key] = joined(found[key], more, path) if key in found else more
    for results in found.values():
        refuse_other_configs(results.axis, results.records)
    return list(found.values())


@contextmanager
def frozen_file(path: Path) -> Iterator[tuple[Any, list[Any]]]:
    """Yields the first line and the others. Whatever the block finds wrong with them becomes a UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}: frozen records are in reports/data/")
    try:
        head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        yield head, lines
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a file of frozen records ({type(error).__name__}: {error})") from None


def thawed(head: Any, lines: Iterable[Any]) -> Results:
    """Returns the sweep of a frozen file. Raises ValueError, KeyError or TypeError for other lines."""
    refuse_others(PlanFields, head)
    results = Results(**{key: head[key] for key in PLAN if key in head})
    run: dict[str, Any] = {}
    for line in lines:
        if line["kind"] == "run":  # that of the evaluations that follow
            refuse_others(RunFields, line)
            run = {key: line[key] for key in PROVENANCE if key in line}
        else:
            refuse_others(EvaluationFields, line)
            own = {key: line[key] for key in (*MEASURED, "arm", "seed") if key in line}
            results.records.append(own | {"run": run})
    return results


def refuse_others(model: type[BaseModel], line: Any) -> None:
    """Raises ValueError if a line has not the fields of a model."""
    wrong = problem(model, line)
    if wrong is not None:
        raise ValueError(wrong)


def joined(first: Results, more: Results, path: Path) -> Results:
    """Returns the results of both files.

    If both know a cell, the one in which it has come further counts.
    """
    # 1. What cannot be joined.
    both = _cells_with_records(first) & _cells_with_records(more)
    if both:
        arm, seed = min(both)
        raise UserError(
            f"{path}: an earlier file has records of {arm}, seed {seed}, too: leave one of the two out"
        )
    if first.baseline != more.baseline:
        raise UserError(
            f"{path}: its baseline is {more.baseline}, an earlier file's of the same sweep is "
            f"{first.baseline}"
        )
    # 2. The cells of both, seed by seed as in a plan, with the arms in the order of the first file.
    arms = list(dict.fromkeys([*first.arms, *more.arms]))
    by_progress = sorted((*first.cells, *more.cells), key=lambda cell: PROGRESS.index(cell["status"]))
    # Of two entries of a cell the one that has come further is the later one, and stays.
    cells = {(cell["arm"], cell["seed"]): cell for cell in by_progress}
    ordered = sorted(cells.values(), key=lambda cell: (cell["seed"], arms.index(cell["arm"])))
    return replace(first, arms=arms, cells=ordered, records=[*first.records, *more.records])


def _cells_with_records(results: Results) -> set[tuple[str, int]]:
    return {(record["arm"], record["seed"]) for record in results.records}
