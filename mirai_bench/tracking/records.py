"""What an evaluation record holds, packed: what stays the same from one evaluation of a run to the next is written once, before them.

{"kind": "run", …PROVENANCE}  {"kind": "evaluation", …MEASURED}  {"kind": "evaluation", …}  …
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MEASURED = (
    "step",
    "epoch",
    "metrics",
    "train_flops",
    "train_seconds",
    "sample_seconds",
    "evaluate_seconds",
    "grid",
)


PROVENANCE = (
    "fingerprint", "profile", "protocol", "protocol_digest", "extractor", "reference", "device", "precision", "parameters", "workers",
    "git", "versions", "config",
)  # fmt: skip


def pack(evaluations: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Evaluation lines of a journal → packed lines."""
    last: dict[str, Any] = {}
    for line in evaluations:
        run = {key: line[key] for key in PROVENANCE if key in line}
        if run != last:
            last = run
            yield {"kind": "run"} | run
        yield {"kind": "evaluation"} | {key: line[key] for key in MEASURED if key in line}


def unpack(lines: Iterable[dict[str, Any]], **labels: Any) -> list[dict[str, Any]]:
    """Packed lines → records in order of step: MEASURED fields, `labels`, and `run`, one object for all evaluations that share it.

    Of two evaluations of one step under one protocol the later one stands.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    run: dict[str, Any] = {}
    for line in lines:
        if line["kind"] == "run":
            run = {key: value for key, value in line.items() if key != "kind"}
        else:
            found[line["step"], run["protocol_digest"]] = (
                {key: value for key, value in line.items() if key != "kind"} | labels | {"run": run}
            )
    return [found[key] for key in sorted(found)]


def read_plans(runs: Path) -> list[dict[str, Any]]:
    """The plans of all sweeps in this folder of runs: {axis, profile, question, baseline, arms, cells: [{arm, seed, fingerprint}]}."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((runs / "sweeps").glob("*.json"))
    ]
    return [plan for plan in found if isinstance(plan, dict) and "cells" in plan]
