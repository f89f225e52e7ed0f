"""Packs evaluation records: what the evaluations of a run have in common is written once.

{"kind": "run", …PROVENANCE}  {"kind": "evaluation", …MEASURED}  {"kind": "evaluation", …}  …
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
PROVENANCE = ("fingerprint", "profile", *_PROTOCOL, *_MADE_BY)


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


def read_plans(runs: Path) -> list[dict[str, Any]]:
    """Returns the plans of all sweeps in this folder of runs.

    A plan is {axis, profile, question, baseline, arms, cells: [{arm, seed, fingerprint}]}.
    """
    found = []
    for path in sorted((runs / "sweeps").glob("*.json")):
        plan = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(plan, dict) and "cells" in plan:
            found.append(plan)
    return found
