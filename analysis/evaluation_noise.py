"""How much of a number is the evaluation's own noise: the same weights sampled with other seeds, against other training seeds.

python analysis/evaluation_noise.py reports/evaluation_noise_digits.jsonl

The records come from `python -m mirai_bench.evaluate RUN --set evaluation.protocol.seed=N --record FILE`, for a few runs of one arm
that differ in their training seed and a few N each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mirai_bench.results.writers import markdown_grid
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError

Records = list[dict[str, Any]]


def deviations(records: Records, metric: str) -> tuple[float, float]:
    """→ (deviation over sampling seeds at the same weights, deviation over training seeds), both of one evaluation.

    One-way analysis of variance, a training seed a group of m evaluations: the mean square within groups is the evaluation's variance;
    the spread of single evaluations between training seeds is the variance of the group means plus (1 - 1/m) of it.
    """
    groups: dict[int, list[float]] = {}
    for record in records:
        groups.setdefault(record["seed"], []).append(record["metrics"][metric])
    sizes = {len(values) for values in groups.values()}
    if len(groups) < 2 or len(sizes) != 1 or sizes == {1}:
        counts = {seed: len(values) for seed, values in groups.items()}
        raise UserError(
            f"evaluations per training seed are {counts}: give two training seeds or more, each with the same number of at least two"
        )
    table = np.array(list(groups.values()))  # (training seeds, m)
    within = table.var(1, ddof=1).mean()
    return math.sqrt(within), math.sqrt(table.mean(1).var(ddof=1) + (1 - 1 / table.shape[1]) * within)


def read(path: Path) -> Records:
    """Raises UserError where the records are not of one run's kind: only the training and sampling seeds may differ."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kinds = {
            json.dumps(
                [r["config"]["foresight"], r["profile"], r["epoch"], r["protocol"] | {"seed": 0, "name": ""}]
            )
            for r in records
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold evaluation records: {type(error).__name__} {error}") from None
    if len(kinds) != 1:
        raise UserError(
            f"{path} holds {len(kinds)} kinds of records: the arm, the epoch and the protocol (but for its seed) must be the same"
        )
    return records


def report(records: Records) -> str:
    header, rows = ["metric", "mean", "s.d. of evaluation", "s.d. between training seeds", "ratio"], []
    for metric in records[0]["metrics"]:
        noise, spread = deviations(records, metric)
        mean = np.mean([record["metrics"][metric] for record in records])
        rows.append(
            [
                metric,
                f"{mean:.4g}",
                f"{noise:.2g}",
                f"{spread:.2g}",
                f"{noise / spread:.2f}" if spread else "—",
            ]
        )
    first, seeds = records[0], sorted({record["seed"] for record in records})
    level, samples = first["config"]["foresight"]["level"], first["protocol"]["num_samples"]
    return (
        f"{first['profile']}, level {level}, epoch {first['epoch']:g}, {samples} samples: training seeds {seeds}, "
        f"{len(records) // len(seeds)} sampling seeds each. Sample standard deviations (n - 1).\n\n{markdown_grid(header, rows)}"
    )


def command(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python analysis/evaluation_noise.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "records", type=Path, nargs="?", default=Path("reports/evaluation_noise_digits.jsonl")
    )
    parser.add_argument("--out", type=Path, default=Path("reports/evaluation_noise.md"))
    args = parser.parse_args(argv)
    text = report(read(args.records))
    args.out.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(run(command))
