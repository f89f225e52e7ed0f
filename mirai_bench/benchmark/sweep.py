"""`benchmark sweep`: where the time of a sweep went, read from its runs' journals. Nothing is run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..journal import read_journal
from .options import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, help="runs/sweeps/<axis>-<profile>.json")


def run_times(journal: Path) -> dict[str, float] | None:
    """Seconds of one run by phase; `other` is start-up, checkpoints and journal. None where it has not ended."""
    lines = list(read_journal(journal))
    ends = [line for line in lines if line["kind"] == "end"]
    if not ends:
        return None
    train = ends[-1]["train_seconds"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    sample, evaluate = (sum(line[f"{part}_seconds"] for line in evaluations) for part in ("sample", "evaluate"))
    starts = [line for line in lines if line["kind"] == "start"]
    wall = ends[-1]["time"] - starts[-1]["time"] if len(starts) == 1 else train + sample + evaluate  # resumed: gaps are nobody's
    return {"train": train, "sample": sample, "evaluate": evaluate, "other": max(0.0, wall - train - sample - evaluate)}


def measure(args: argparse.Namespace, options: Options) -> list[dict[str, Any]]:
    """One row an arm: mean seconds a run of its finished seeds."""
    if not args.plan.is_file():
        raise UserError(f"There is no plan at {args.plan}: write runs/sweeps/<axis>-<profile>.json of a sweep that has run")
    plan, runs = json.loads(args.plan.read_text()), args.plan.absolute().parents[1]
    rows = []
    for arm in plan["arms"]:
        cells = [cell for cell in plan["cells"] if cell["arm"] == arm]
        found = [run_times(runs / cell["fingerprint"] / "journal.jsonl") for cell in cells]
        times = [time for time in found if time is not None]
        mean = {part: sum(time[part] for time in times) / len(times) for part in times[0]} if times else None
        status = "measured" if times else "not measured"
        rows.append(
            {
                "kind": "sweep",
                "status": status,
                "axis": plan["axis"],
                "arm": arm,
                "runs": len(times),
                "of": len(cells),
                "seconds": mean,
            }
        )
    return rows
