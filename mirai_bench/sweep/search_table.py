"""The configurations of a search as a table, and the best one in words."""

from __future__ import annotations

import json
from typing import Any

import yaml

from mirai_bench.config.load import parse_sets
from mirai_bench.sweep.overview import number

Row = dict[str, Any]
"""A configuration, as `search.compare` returns it."""


def table_of(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and a line for each row: its values, what came out, how far each run got."""
    lines = []
    for row in rows:
        drawn = row["values"].values()
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in drawn]
        measured = [number(row["metric"], ".4f"), number(row["heldout_ntp"], ".4f")]
        measured.append(number(row["seconds"], ".1f"))
        runs = [f"{run['seed']}: {run['state']}, epoch {number(run['epoch'], 'g')}" for run in row["runs"]]
        lines.append([*values, *measured, "; ".join(runs), row["excluded"] or ""])
    header = [*rows[0]["values"], "metric", "heldout_ntp", "seconds", "seeds", "excluded because"]
    return header, lines


def best_of(rows: list[Row]) -> Row | None:
    """Returns the best row, or None if none counts."""
    best = rows[0]
    return best if best["metric"] is not None and best["excluded"] is None else None


def in_words(values: dict[str, Any], before: str = "") -> str:
    """Writes drawn values as `--set` takes them, such as `train.lr=0.002 foresight.k=3`.

    `before` stands before each of them.
    """
    return " ".join(before + setting for setting in _settings(values))


def in_yaml(values: dict[str, Any]) -> str:
    """Writes drawn values as a line of YAML, such as `{train: {lr: 0.002}}`."""
    return yaml.safe_dump(parse_sets(_settings(values)), default_flow_style=True, sort_keys=False).strip()


def _settings(values: dict[str, Any]) -> list[str]:
    # A shell takes each for one word.
    return [f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in values.items()]
