"""What a cell will cost: FLOPs, hours, disk.

FLOPs and disk are counted from the configuration. Hours come from runs that were measured on this
machine. What a teacher costs once is counted apart, because many cells may share it.
"""

from __future__ import annotations

import os
import statistics
from typing import NamedTuple

from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Cell
from mirai_bench.model.cost import (
    checkpoint_bytes,
    kept_bytes,
    num_images,
    num_steps,
    training_flops,
)
from mirai_bench.model.one_off import one_off_flops
from mirai_bench.sweep.plan import Plan, folder_of
from mirai_bench.tracking.run_folder import RunFolder

MEASURED_RUNS = 20  # number of finished runs, the newest ones, that the pace is taken from


class Cost(NamedTuple):
    """What a cell will cost. None is not known."""

    flops: float | None
    one_off: float | None
    """FLOPs that are spent once for its teacher, which other cells may share."""
    hours: float | None
    """Those of its own training and its evaluations."""
    disk: int
    """Bytes of its checkpoints and of the weights that it keeps."""


def cell_flops(config: RunConfig) -> float | None:
    """Returns the FLOPs of the training of a cell, or None if they are not known."""
    steps = num_steps(config)
    return None if steps is None else training_flops(config, steps, steps)


def measured_rate(plan: Plan) -> float | None:
    """Returns the FLOPs per second of wall-clock, evaluation included.

    It is the median of the newest finished runs of this profile, or None before the first.
    """
    # The newest, because the machine or the code may have become faster; the median, because other
    # work may have slowed some of them.
    folders = [RunFolder(path) for path in plan.runs.glob("*")]
    finished = [folder for folder in folders if folder.is_done]
    finished.sort(key=lambda folder: folder.done_file.stat().st_mtime, reverse=True)
    rates = [_rate(folder, plan.profile) for folder in finished[:MEASURED_RUNS]]
    known = [rate for rate in rates if rate is not None]
    return statistics.median(known) if known else None


def _rate(folder: RunFolder, profile: str) -> float | None:
    """Returns the rate of a run of this profile that was trained in one go, or None."""
    lines = list(folder.journal.lines())
    trained = [line for line in lines if line["kind"] == "train"]
    starts = [line for line in lines if line["kind"] == "start"]
    evaluated = [line for line in lines if line["kind"] == "evaluation"]
    # The time between two starts of a resumed run is not training time.
    if len(starts) != 1 or not trained or not evaluated or evaluated[0].get("profile") != profile:
        return None
    seconds = lines[-1]["time"] - starts[0]["time"]  # wall-clock
    flops = trained[-1]["train_flops"]  # None in the journal of a run whose FLOPs are not known
    return flops / seconds if flops is not None and seconds > 0 else None


def cost_of(cell: Cell, rate: float | None) -> Cost:
    """Returns what a cell will cost, at this rate (FLOPs per second)."""
    flops = cell_flops(cell.config)
    hours = flops / rate / 3600 if flops is not None and rate else None
    machine = cell.config.machine
    disk = checkpoint_bytes(cell.config) * machine.keep_checkpoints
    disk += kept_bytes(cell.config) * len(machine.keep_at)
    one_off = one_off_flops(cell.config, num_images(cell.config))
    return Cost(flops, one_off, hours, disk)


def disk_used(cell: Cell) -> int:
    """Returns the bytes of the checkpoints and of the kept weights that a cell has."""
    files = [*folder_of(cell).checkpoints.glob("*/*"), *cell.run_path.glob("kept/*")]
    return sum(path.stat().st_size for path in files)


def concurrent_trials(plan: Plan, most: int | None) -> int:
    """Returns how many trials run at a time here, at most `most` if that is given."""
    fitting = (os.cpu_count() or 1) // plan.sweep.cells[0].config.machine.cpus
    return most or fitting or 1
