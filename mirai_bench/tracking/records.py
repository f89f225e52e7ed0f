"""Packs evaluation records: what the evaluations of a run have in common is written once.

{"kind": "run", …PROVENANCE}  {"kind": "evaluation", …MEASURED}  {"kind": "evaluation", …}  …
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from mirai_bench.utils.hashing import digest

log = logging.getLogger(__name__)

COSTS = ("train_flops", "train_seconds", "sample_seconds", "evaluate_seconds")
# What was spent once for the teacher of the run, before its first step; 0 without a teacher. The
# teacher may serve many runs: each of them carries its whole cost. None is not known, and records
# that are older than the fields lack them.
ONE_OFF = ("one_off_flops", "one_off_seconds")
# Fields of an evaluation, in the order in which they are written.
MEASURED = ("step", "epoch", "metrics", *COSTS, *ONE_OFF, "grid")
# Fields of its run: who it is, what it was measured with, what made it.
_PROTOCOL = ("protocol", "protocol_digest", "extractor", "reference")
_MADE_BY = ("device", "precision", "compiled", "parameters", "workers", "git", "versions", "config")
# What of its data the run has not seen, with counts by the reason. Absent if that is nothing.
_LEFT_OUT = ("left_out",)
PROVENANCE = ("fingerprint", "profile", *_PROTOCOL, *_MADE_BY, *_LEFT_OUT)


def pack(evaluations: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the packed lines of the evaluation lines of a journal."""
    last: dict[str, Any] = {}
    for line in evaluations:
        run = {key: line[key] for key in PROVENANCE if key in line}
        if run != last:
            last = run
            yield {"kind": "run"} | run
        yield {"kind": "evaluation"} | {key: line[key] for key in MEASURED if key in line}


def unpack(lines: Iterable[dict[str, Any]], **labels: Any) -> list[dict[str, Any]]:
    """Returns the records of packed lines, in the order of their steps.

    A record has the fields MEASURED, the labels, and `run`, which is one object for all evaluations
    that share it. Of two evaluations of one step under one protocol the later one counts.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    run: dict[str, Any] = {}
    for line in lines:
        fields = {key: value for key, value in line.items() if key != "kind"}
        if line["kind"] == "run":
            run = fields
        else:
            found[line["step"], run["protocol_digest"]] = fields | labels | {"run": run}
    return [found[key] for key in sorted(found)]


# ---- what files of others must hold

Count = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True)]


class PlannedCell(BaseModel):
    """A cell of a plan."""

    arm: str
    seed: Count
    # It names a folder, and nothing in it may lead out of the folder of runs.
    fingerprint: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class RegisteredFields(BaseModel):
    """What decides a sweep, as far as tables read it."""

    primary: str | None
    looks: list[Count]
    smallest_effect: Number | None
    families: dict[str, list[str]]
    exclusions: list[str]
    arms: list[str]
    seeds: list[Count]
    hash: str


class PlanFields(BaseModel):
    """The fields of a plan."""

    axis: str
    profile: str
    question: str
    baseline: str
    arms: list[str]
    cells: Sequence[PlannedCell]
    # Absent from older plans, and else both.
    registered: Annotated[dict[Literal["first", "now"], RegisteredFields], Field(min_length=2)] = {}
    settings: list[str] = []


class EndedCell(PlannedCell):
    """A cell of a frozen file, which also says what became of it."""

    status: Literal["pending", "running", "failed", "done"]


class FrozenFields(PlanFields):
    """The fields of the first line of a frozen file."""

    cells: Sequence[EndedCell]


class NamedFields(BaseModel):
    """A section of which only the name has to be there."""

    name: str


class ModelFields(BaseModel):
    """What the configuration says of the model."""

    size: str


class ConfigFields(BaseModel):
    """What every configuration says. Its other sections may be missing from records of other code."""

    model: ModelFields


class GitFields(BaseModel):
    """The commit of the code. Both are None outside of a checkout."""

    commit: str | None
    dirty: Annotated[bool, Field(strict=True)] | None


class RunFields(BaseModel):
    """What a record says of its run, as far as tables read it."""

    arm: str
    seed: Count
    fingerprint: str
    protocol: NamedFields
    protocol_digest: str
    extractor: NamedFields
    reference: dict[str, Any]
    device: str
    precision: str
    parameters: Count
    git: GitFields
    versions: dict[str, Any]
    config: ConfigFields


class EvaluationFields(BaseModel):
    """What a record says of an evaluation, as far as tables read it."""

    arm: str
    seed: Count
    step: Count
    epoch: Number
    metrics: dict[str, Number | None]
    train_flops: Number | None
    train_seconds: Number | None
    sample_seconds: Number | None
    evaluate_seconds: Number | None
    # Absent from older records.
    one_off_flops: Number | None = None
    one_off_seconds: Number | None = None


def problem(model: type[BaseModel], fields: Any) -> str | None:
    """Returns what is wrong with fields that come from a file, in one line, or None."""
    try:
        model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else first["msg"]
    return None


def read_plan(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns the plan of a file, or None and what is wrong with it: nothing in a file of another kind.

    Plans of earlier versions have no hash of their own.
    """
    try:
        plan = json.loads(path.read_bytes())
        if not isinstance(plan, dict) or not {"arms", "cells"} & plan.keys():
            return None, ""  # such as the results of a search
        wrong = problem(PlanFields, plan)
        if wrong is None:
            content = {key: value for key, value in plan.items() if key != "sha256"}
            if digest(content) != plan.get("sha256", digest(content)):
                wrong = "its content is not what was written"
    except (OSError, ValueError, RecursionError) as error:
        wrong = str(error)
    return (plan, "") if wrong is None else (None, wrong)


def read_plans(runs: Path) -> list[dict[str, Any]]:
    """Returns the plans of all sweeps in this folder of runs.

    A plan is {axis, profile, question, baseline, arms, cells: [{arm, seed, fingerprint}]}. Files of
    another kind are passed over; a warning names them.
    """
    found = []
    for path in sorted((runs / "sweeps").glob("*.json")):
        plan, wrong = read_plan(path)
        if plan is not None:
            found.append(plan)
        elif wrong:
            log.warning(f"{path} is passed over: it is not the plan of a sweep ({wrong})")
    return found
