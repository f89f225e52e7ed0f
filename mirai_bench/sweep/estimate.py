"""What a cell will cost: FLOPs, hours, disk. Counted from the config; hours from runs that were measured on this machine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Cell
from mirai_bench.model.cost import checkpoint_bytes, num_images, training_flops
from mirai_bench.sweep.plan import Plan, run_dir_of
from mirai_bench.tracking.journal import read_journal

MEASURED_RUNS = 20  # of the newest finished runs, for the pace


@dataclass(frozen=True)
class Cost:
    flops: float | None
    seconds: float | None
    disk: int
    """bytes of its checkpoints"""


def cell_flops(config: RunConfig) -> float | None:
    """Training alone; None where the number of images is not known."""
    images = num_images(config)
    if images is None:
        return None
    steps = config.train.epochs * (images // config.train.batch_size)
    return training_flops(config, steps, steps)


def measured_rate(plan: Plan) -> float | None:
    """FLOPs a second of wall-clock, evaluation included: median of the newest finished runs of this profile; None before the first."""
    finished = sorted(plan.runs.glob("*/done.json"), key=lambda path: path.stat().st_mtime, reverse=True)[
        :MEASURED_RUNS
    ]
    rates = [rate for path in finished if (rate := _rate(path.parent, plan.profile)) is not None]
    return statistics.median(rates) if rates else None


def _rate(run_dir: Path, profile: str) -> float | None:
    """Of a run that was trained in one go."""
    lines = list(read_journal(run_dir / "journal.jsonl"))
    trained = [line for line in lines if line["kind"] == "train"]
    starts = [line for line in lines if line["kind"] == "start"]
    evaluated = [line for line in lines if line["kind"] == "evaluation"]
    if len(starts) != 1 or not trained or not evaluated or evaluated[0].get("profile") != profile:
        return None
    seconds = lines[-1]["time"] - starts[0]["time"]
    return trained[-1]["train_flops"] / seconds if seconds > 0 else None


def cost_of(cell: Cell, rate: float | None) -> Cost:
    flops = cell_flops(cell.config)
    seconds = flops / rate if flops is not None and rate else None
    return Cost(flops, seconds, checkpoint_bytes(cell.config) * cell.config.machine.keep_checkpoints)


def disk_used(cell: Cell) -> int:
    """Bytes of the checkpoints that are there."""
    return sum(path.stat().st_size for path in run_dir_of(cell).glob("checkpoints/step_*/*"))
