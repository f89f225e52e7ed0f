"""The numbers of a journal's lines, by the names that trackers show."""

from __future__ import annotations

import re
from typing import Any

from mirai_bench.tracking.records import MEASURED

PREFIX = {"train": "train/", "evaluation": "eval/"}  # by the kind of the line


def points_of(line: dict[str, Any]) -> dict[str, float]:
    """Returns all numbers of a train line, or the metrics and costs of an evaluation."""
    values = dict(line) if line["kind"] == "train" else {key: line.get(key) for key in MEASURED}
    values |= line.get("metrics", {})
    points = {}
    for key, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and key not in ("time", "step"):
            points[PREFIX[line["kind"]] + allowed(key)] = float(value)
    return points


def allowed(key: str) -> str:
    """Returns a name without the characters that MLflow refuses, such as that of "precision@5"."""
    return re.sub(r"[^\w.\- :/]", "_", key)
