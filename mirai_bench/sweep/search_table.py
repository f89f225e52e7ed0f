"""The configurations of a search: compared, as a table, and the best one in words."""

from __future__ import annotations

import json
import statistics
from typing import Any

import yaml

from mirai_bench.config.load import as_settings, parse_sets
from mirai_bench.config.sweep_file import Search
from mirai_bench.results.frame import is_distance
from mirai_bench.sweep.overview import number

HELDOUT = "heldout_ntp"  # the metric that `slack` is about

Row = dict[str, Any]
"""A configuration, as `compare` returns it."""


def compare(runs: list[dict[str, Any]], search: Search, lower: bool) -> list[dict[str, Any]]:
    """Returns a row per configuration, the best one first. `lower` says whether less is better.

    `excluded` says why a configuration does not count, or is None.
    """
    # 1. The means over the seeds. A configuration of which one run failed has none.
    by_values: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_values.setdefault(json.dumps(run["values"], sort_keys=True), []).append(run)
    rows = []
    for unordered in by_values.values():
        of_values = sorted(unordered, key=lambda run: run["seed"])
        row = {"values": of_values[0]["values"], "metric": None, HELDOUT: None, "seconds": None}
        if all(run["metric"] is not None for run in of_values):
            in_log = is_distance(search.metric)
            row["metric"] = mean_of([run["metric"] for run in of_values], in_log)
            for name in (HELDOUT, "seconds"):
                values = [run[name] for run in of_values if run[name] is not None]
                row[name] = mean_of(values) if values else None
        rows.append(row | {"excluded": None, "runs": of_values})
    # 2. What does not count.
    losses = [row[HELDOUT] for row in rows if row[HELDOUT] is not None]
    for row in rows:
        seconds = row["seconds"]
        if row["metric"] is None:
            row["excluded"] = "not measured"
        elif search.seconds is not None and seconds is not None and seconds > search.seconds:
            row["excluded"] = f"{seconds:.0f} s of training, more than {search.seconds:g}"
        elif search.slack is not None and row[HELDOUT] is None:
            row["excluded"] = f"{HELDOUT} not measured"
        elif search.slack is not None and row[HELDOUT] > min(losses) + search.slack:
            row["excluded"] = f"{HELDOUT} is {row[HELDOUT] - min(losses):.3f} above the best"
    sign = 1 if lower else -1
    rows.sort(key=lambda r: (r["metric"] is None, r["excluded"] is not None, (r["metric"] or 0) * sign))
    return rows


def mean_of(values: list[float], in_log: bool = False) -> float:
    """Returns the mean, or the geometric mean."""
    return statistics.geometric_mean(values) if in_log else statistics.fmean(values)


def table_of(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and a line for each row: its values, what came out, how far each run got."""
    lines = []
    for row in rows:
        drawn = row["values"].values()
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in drawn]
        measured = [number(row["metric"], ".4f"), number(row[HELDOUT], ".4f")]
        measured.append(number(row["seconds"], ".1f"))
        runs = [f"{run['seed']}: {run['state']}, epoch {number(run['epoch'], 'g')}" for run in row["runs"]]
        lines.append([*values, *measured, "; ".join(runs), row["excluded"] or ""])
    header = [*rows[0]["values"], "metric", HELDOUT, "seconds", "seeds", "excluded because"]
    return header, lines


def best_of(rows: list[Row]) -> Row | None:
    """Returns the best row, or None if none counts."""
    best = rows[0]
    return best if best["metric"] is not None and best["excluded"] is None else None


def in_words(values: dict[str, Any], before: str = "") -> str:
    """Writes drawn values as `--set` takes them, such as `train.lr=0.002 foresight.k=3`.

    `before` stands before each of them.
    """
    # Without spaces, so that a shell takes each for one word.
    texts = {name: json.dumps(value, separators=(",", ":")) for name, value in values.items()}
    return " ".join(f"{before}{name}={text}" for name, text in texts.items())


def in_yaml(values: dict[str, Any]) -> str:
    """Writes drawn values as a line of YAML, such as `{train: {lr: 0.002}}`."""
    fields = parse_sets(as_settings(values))
    return yaml.safe_dump(fields, default_flow_style=True, sort_keys=False).strip()
