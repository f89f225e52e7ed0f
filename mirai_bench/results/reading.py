"""TODO: results.reading."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirai_bench.results.frame import Results, refuse_mixed_protocols
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.mlflow_store import (
    answers,
    artifact,
    children,
    connect,
    experiment_id,
    shown,
    store_uri,
)
from mirai_bench.tracking.records import MEASURED, PROVENANCE, pack, read_plans, unpack
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


PROGRESS = ("pending", "running", "failed", "done")  # of a cell


STATUS = {"FINISHED": "done", "FAILED": "failed", "KILLED": "failed", "RUNNING": "running"}


def _from_plan(
    plan: dict[str, Any], runs: dict[tuple[str, str], tuple[str, Path | None, Path | str]]
) -> Results:
    """plan and (arm, fingerprint) → (status, file with evaluation lines: a journal, or packed; source)."""
    results = Results(plan["axis"], plan["profile"], plan["question"], plan["baseline"], plan["arms"], [])
    for cell in plan["cells"]:
        arm, seed, fingerprint = cell["arm"], cell["seed"], cell["fingerprint"]
        status, file, source = runs.get((arm, fingerprint), ("pending", None, None))
        results.cells.append({"arm": arm, "seed": seed, "fingerprint": fingerprint, "status": status})
        if source is not None:
            results.sources[fingerprint] = source
        if file is not None:
            lines = read_journal(file)
            if file.name == "journal.jsonl":
                lines = pack(line for line in lines if line["kind"] == "evaluation")
            results.records += unpack(lines, arm=arm, seed=seed)
    return results


@contextmanager
def _no_collection() -> Iterator[None]:
    """Records are kept, none is garbage: looking for it takes half of the time of reading 1,000 runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def read_journals(runs: Path, axis: str | None = None, profile: str | None = None) -> list[Results]:
    """Every sweep (or the one of this axis and profile) that was planned in this folder of runs, from the runs' own journals."""
    found = []
    for plan in read_plans(runs):
        if axis in (None, plan["axis"]) and profile in (None, plan["profile"]):
            cells = [(cell["arm"], cell["fingerprint"], runs / cell["fingerprint"]) for cell in plan["cells"]]
            states = {
                (arm, mark): (_state(folder), folder / "journal.jsonl", folder) for arm, mark, folder in cells
            }
            found.append(_from_plan(plan, states))
    return found


def _state(folder: Path) -> str:
    for status in ("done", "failed"):
        if (folder / f"{status}.json").is_file():
            return status
    return "running" if (folder / "journal.jsonl").is_file() else "pending"


@_no_collection()
def read_mlflow(
    axis: str | None = None, profile: str | None = None, sweep: str | None = None
) -> list[Results]:
    """Every sweep in the store (or the one of this axis, profile, or parent run id). An empty list where there is no store at all."""
    uri = store_uri()
    if not answers(uri):
        if uri.startswith("http"):
            raise UserError(
                f"MLflow at {shown(uri)} does not answer: start it, or read run folders with --runs FOLDER"
            )
        return []
    client = connect(uri)
    experiment = experiment_id(client, uri)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for parent in client.search_runs(
            [experiment], "tags.kind = 'sweep'", order_by=["attributes.start_time ASC"]
        ):
            tags = parent.data.tags
            if (
                axis in (None, tags["axis"])
                and profile in (None, tags["profile"])
                and sweep in (None, parent.info.run_id)
            ):
                found.append(_read_sweep(client, experiment, parent, Path(scratch)))
    return [results for results in found if results is not None]


def _read_sweep(client: MlflowClient, experiment: str, parent: Run, scratch: Path) -> Results | None:
    plan_path = artifact(client, parent, "plan.json", scratch)
    if not plan_path.is_file():
        say(f"{parent.info.run_name}: it has no plan yet, left out")
        return None
    plan = json.loads(plan_path.read_text(encoding="utf-8"))
    planned = {(cell["arm"], cell["fingerprint"]) for cell in plan["cells"]}
    runs = {
        (run.data.tags["arm"], run.data.tags["fingerprint"]): run
        for run in children(client, experiment, parent)
    }

    def fetch(run: Run) -> tuple[str, Path | None, Path | str]:
        evaluated = "eval/epoch" in run.data.metrics
        file = artifact(client, run, "records.jsonl", scratch) if evaluated else None
        here = file is not None and scratch not in file.parents
        return STATUS.get(run.info.status, "running"), file, file.parent if here else run.info.run_id

    wanted = {key: run for key, run in runs.items() if key in planned}
    with ThreadPoolExecutor(16) as pool:
        return _from_plan(plan, dict(zip(wanted, pool.map(fetch, wanted.values()), strict=True)))


def fetch_grid(results: Results, record: dict[str, Any], scratch: Path) -> Path | None:
    """The sample grid of this record, downloaded into `scratch` if it is not on this machine; None where there is none."""
    source = results.sources.get(record["run"]["fingerprint"])
    if source is None or not record.get("grid"):
        return None
    grid = f"samples/{Path(record['grid']).name}"
    if isinstance(source, str):
        (scratch / source).mkdir(exist_ok=True)
        return Path(connect(store_uri()).download_artifacts(source, grid, str(scratch / source)))
    return source / grid if (source / grid).is_file() else None


# ---- frozen files


def freeze(results: Results, path: Path) -> None:
    """The records behind a table or figure as JSON lines: the sweep, then each run once, followed by its evaluations."""
    refuse_mixed_protocols(results)
    keys = ("axis", "profile", "question", "baseline", "arms", "cells")
    lines: list[dict[str, Any]] = [{"kind": "sweep"} | {key: getattr(results, key) for key in keys}]
    last = None
    for record in results.records:
        if record["run"] is not last:
            last = record["run"]
            lines.append({"kind": "run", "arm": record["arm"], "seed": record["seed"]} | last)
        own = {key: record[key] for key in MEASURED if key in record and key != "grid"}
        lines.append(
            {"kind": "evaluation", "axis": results.axis, "arm": record["arm"], "seed": record["seed"]} | own
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_jsonl(paths: Iterable[Path]) -> list[Results]:
    """Frozen files → one Results a sweep and profile; files of one sweep (more seeds, another machine) are joined.

    Raises UserError for a file of another kind, and where two files have records of the same cell.
    """
    found: dict[tuple[str, str], Results] = {}
    for path in paths:
        more = _read_frozen(path)
        key = more.axis, more.profile
        found[key] = _joined(found[key], more, path) if key in found else more
    return list(found.values())


def _joined(first: Results, more: Results, path: Path) -> Results:
    ours, theirs = (
        {(record["arm"], record["seed"]) for record in results.records} for results in (first, more)
    )
    if ours & theirs:
        arm, seed = min(ours & theirs)
        raise UserError(
            f"{path}: an earlier file has records of {arm}, seed {seed}, too: leave one of the two out"
        )
    if first.baseline != more.baseline:
        raise UserError(
            f"{path}: its baseline is {more.baseline}, an earlier file's of the same sweep is {first.baseline}"
        )
    arms = list(dict.fromkeys([*first.arms, *more.arms]))
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in sorted((*first.cells, *more.cells), key=lambda cell: PROGRESS.index(cell["status"])):
        cells[cell["arm"], cell["seed"]] = cell
    ordered = sorted(cells.values(), key=lambda cell: (cell["seed"], arms.index(cell["arm"])))
    return replace(first, arms=arms, cells=ordered, records=[*first.records, *more.records])


def _read_frozen(path: Path) -> Results:
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}: frozen records are in reports/data/")
    try:
        head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        results = Results(
            **{key: head[key] for key in ("axis", "profile", "question", "baseline", "arms", "cells")}
        )
        run: dict[str, Any] = {}
        for line in lines:
            if line["kind"] == "run":
                run = {key: line[key] for key in PROVENANCE if key in line}
            else:
                results.records.append(
                    {key: line[key] for key in (*MEASURED, "arm", "seed") if key in line} | {"run": run}
                )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of frozen records ({type(error).__name__}: {error})") from None
    return results
