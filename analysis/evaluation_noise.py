"""Compares the noise of an evaluation with the spread of the training seeds.

    python analysis/evaluation_noise.py reports/evaluation_noise_digits.jsonl

The records come from `python -m mirai_bench.evaluate RUN --set evaluation.protocol.seed=N --record
FILE`, for a few runs of one arm that differ in their training seed, and for a few N each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mirai_bench.results.frame import measured_with
from mirai_bench.results.noise import variances
from mirai_bench.results.table import MISSING
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.text_table import markdown_table

Records = list[dict[str, Any]]


def read(path: Path) -> Records:
    """Returns the records of a file.

    Raises UserError if they differ in more than their training and sampling seeds.
    """
    try:
        text = path.read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
        kinds = {json.dumps(_kind(record)) for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold evaluation records: {type(error).__name__} {error}") from None
    if len(kinds) != 1:
        raise UserError(
            f"{path} holds {len(kinds)} kinds of records: the arm, the epoch and the protocol (but "
            "for its seed) must be the same"
        )
    return records


def _kind(record: dict[str, Any]) -> list[Any]:
    """Returns what must be the same in all records."""
    # The protocol holds the sampling seed, and the config the training seed: these may differ.
    protocol = measured_with(record) | {"protocol.seed": None}
    return [record["config"]["foresight"], record["profile"], record["epoch"], protocol]


def deviations(records: Records, metric: str) -> tuple[float, float]:
    """Returns the standard deviations of one evaluation over sampling seeds and training seeds.

    This is a one-way analysis of variance in which a training seed is a group of m evaluations. The
    mean square within groups is the variance of the evaluation. The variance of single evaluations
    between training seeds is that of the group means plus (1 - 1/m) of it.
    """
    # 1. The evaluations of each training seed. With groups of one size no weights are needed.
    groups: dict[int, list[float]] = {}
    for record in records:
        groups.setdefault(record["seed"], []).append(record["metrics"][metric])
    sizes = {len(values) for values in groups.values()}
    if len(groups) < 2 or len(sizes) != 1 or sizes == {1}:
        counts = {seed: len(values) for seed, values in groups.items()}
        raise UserError(
            f"evaluations per training seed are {counts}: give two training seeds or more, each "
            "with the same number of at least two"
        )
    # 2. The components. With σ_w of the evaluation and σ_b of the training, a group's mean varies by
    #    σ_b² + σ_w²/m, and one evaluation of any training seed by σ_b² + σ_w².
    table = np.array(list(groups.values()))  # (training seeds, m)
    within, of_means = variances(table)
    between = of_means + (1 - 1 / table.shape[1]) * within
    return math.sqrt(within), math.sqrt(between)


def report(records: Records) -> str:
    """Returns the table of all metrics, with a heading."""
    # 1. A row per metric. A ratio below 1: another training seed changes more than another evaluation.
    rows = []
    for metric in records[0]["metrics"]:
        noise, spread = deviations(records, metric)
        mean = np.mean([record["metrics"][metric] for record in records])
        ratio = f"{noise / spread:.2f}" if spread else MISSING
        rows.append([metric, f"{mean:.4g}", f"{noise:.2g}", f"{spread:.2g}", ratio])
    header = ["metric", "mean", "s.d. of evaluation", "s.d. between training seeds", "ratio"]
    # 2. What the records have in common.
    first = records[0]
    seeds = sorted({record["seed"] for record in records})
    level = first["config"]["foresight"]["level"]
    samples = first["protocol"]["num_samples"]
    return (
        f"{first['profile']}, level {level}, epoch {first['epoch']:g}, {samples} samples: training "
        f"seeds {seeds}, {len(records) // len(seeds)} sampling seeds each. Sample standard "
        f"deviations (n - 1).\n\n{markdown_table(header, rows)}"
    )


def command(argv: list[str]) -> None:
    """Runs the script. Writes and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python analysis/evaluation_noise.py", description=__doc__.splitlines()[0]
    )
    records = Path("reports/evaluation_noise_digits.jsonl")
    out = Path("reports/evaluation_noise.md")
    parser.add_argument("records", type=Path, nargs="?", default=records, help=f"default {records}")
    parser.add_argument("--out", type=Path, default=out, help=f"the file to write; default {out}")
    args = parser.parse_args(argv)
    text = report(read(args.records))
    args.out.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(run(command))
