"""Frozen files: the records behind a table or a figure as JSON lines, which can be committed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirai_bench.results.configs import refuse_other_configs
from mirai_bench.results.frame import Results, refuse_mixed_protocols
from mirai_bench.tracking.records import (
    MEASURED,
    PROVENANCE,
    EvaluationFields,
    FrozenFields,
    RunFields,
    problem,
)
from mirai_bench.utils.errors import UserError, shortened
from mirai_bench.utils.files import write_text

if TYPE_CHECKING:
    from pydantic import BaseModel

log = logging.getLogger(__name__)

PROGRESS = ("pending", "running", "failed", "done")  # states of a cell, the furthest one last
# Fields of Results in a plan and in a frozen file. Older ones have nothing registered and nothing set.
PLAN = ("axis", "profile", "question", "baseline", "arms", "cells", "registered", "settings")
# What files hold that lie beside the frozen sweeps in reports/data/, by the kind of their first line.
OTHERS = {
    "diagnoses": "diagnoses (analysis/diagnose.py)",
    "panel": "a noise panel (sweep noise)",
    "cell": "further evaluations (analysis/guidance.py or power.py)",
}


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

    Files of one sweep (other seeds, another machine) are joined, and files that lie beside them and hold
    something else are passed over. Raises UserError if none holds a sweep, for a file of any other kind,
    if two files have records of the same cell, or if seeds of an arm are of two configurations.
    """
    found: dict[tuple[str, str], Results] = {}
    for path in _of_sweeps(list(paths)):
        with frozen_file(path) as (head, lines):
            more = thawed(head, lines)
        key = (more.axis, more.profile)
        found[key] = joined(found[key], more, path) if key in found else more
    for results in found.values():
        refuse_other_configs(results.axis, results.records)
    return list(found.values())


def _of_sweeps(paths: list[Path]) -> list[Path]:
    """Returns the files without those that say that they hold something else."""
    others = {path: OTHERS[kind] for path in paths if (kind := first_kind(path)) in OTHERS}
    kept = [path for path in paths if path not in others]
    if others and not kept:
        path, what = next(iter(others.items()))
        raise UserError(
            f"{path} holds {what}, and no sweep: write a file of frozen records, such as "
            "reports/data/injection_level_digits.jsonl"
        )
    for path, what in others.items():
        log.info(f"{path} is not read as a sweep: it holds {what}")
    return kept


def first_line(path: Path) -> dict[str, Any]:
    """Returns the first line of a frozen file, or nothing if it is not one, which its reader will refuse."""
    try:
        with open(path, encoding="utf-8") as file:
            head = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}


def first_kind(path: Path) -> str | None:
    """Returns the kind of the first line of a frozen file, or None if it does not say one."""
    kind = first_line(path).get("kind")
    return kind if isinstance(kind, str) else None


@contextmanager
def frozen_file(path: Path) -> Iterator[tuple[Any, list[Any]]]:
    """Yields the first line and the others. Whatever the block finds wrong with them becomes a UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}: frozen records are in reports/data/")
    try:
        head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        yield head, lines
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a file of frozen records ({type(error).__name__}: {error}): freeze it again from "
            "its runs, or leave it out"
        ) from None


def thawed(head: Any, lines: Iterable[Any]) -> Results:
    """Returns the sweep of a frozen file. Raises ValueError, KeyError or TypeError for other lines."""
    refuse_others(FrozenFields, head)
    results = Results(**{key: head[key] for key in PLAN if key in head})
    run: dict[str, Any] = {}
    of_run = None
    seen = set()
    for line in lines:
        if line["kind"] == "run":  # that of the evaluations that follow
            refuse_others(RunFields, line)
            run = {key: line[key] for key in PROVENANCE if key in line}
            of_run = (line["arm"], line["seed"])
        else:
            refuse_others(EvaluationFields, line)
            own = {key: line[key] for key in (*MEASURED, "arm", "seed") if key in line}
            place = (own["arm"], own["seed"], own["step"])
            if place[:2] != of_run:
                raise ValueError(f"{_in_words(place)} does not follow the line of its run")
            if place in seen:
                raise ValueError(f"{_in_words(place)} is there twice")
            seen.add(place)
            results.records.append(own | {"run": run})
    _refuse_foreign_arms(results)
    return results


def _in_words(place: tuple[str, int, int]) -> str:
    arm, seed, step = place
    return f"the evaluation of {arm}, seed {seed}, at step {step}"


def _refuse_foreign_arms(results: Results) -> None:
    """Raises ValueError unless each arm has one place in the sweep, and cells and records are of its arms."""
    arms = results.arms
    if len(set(arms)) < len(arms):
        raise ValueError(f"arms names one twice: {', '.join(arms)}")
    for own in (*results.cells, *results.records):
        if own["arm"] not in arms:
            raise ValueError(f"{own['arm']} is none of its arms: {', '.join(arms) or 'there are none'}")


def refuse_others(model: type[BaseModel], line: Any) -> None:
    """Raises ValueError if a line has not the fields of a model."""
    wrong = problem(model, line)
    if wrong is not None:
        raise ValueError(f"{wrong}, in {shortened(json.dumps(line))}")


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
