"""What a sweep shows without starting anything: its cells, their costs and their states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet

from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.estimate import Cost, concurrent_trials, cost_of, disk_used
from mirai_bench.sweep.plan import Plan, folder_of
from mirai_bench.sweep.progress import duration
from mirai_bench.utils.text_table import console_table

UNKNOWN = "—"


def dry_run(
    plan: Plan,
    rate: float | None,
    max_concurrent: int | None = None,
    recorded: AbstractSet[str] = frozenset(),
) -> str:
    """Returns a table of the cells with their costs, and a summary of those that are missing.

    `rate` is in FLOPs per second, or None if it is not known. `recorded` holds the fingerprints of
    cells that are known from frozen records.
    """
    # 1. The cells.
    missing: list[Cost] = []
    rows = []
    for cell in plan.sweep.cells:
        state: str = folder_of(cell).state
        if state == "pending" and cell.fingerprint in recorded:
            state = "recorded"
        cost = cost_of(cell, rate)
        if state not in ("done", "recorded"):
            missing.append(cost)
        disk = disk_used(cell) if state == "done" else cost.disk
        once = "" if cost.one_off == 0 else number(cost.one_off, ".2e")
        costs = [number(cost.flops, ".2e"), once, number(cost.hours, ".3g"), size(disk)]
        rows.append([cell.arm, str(cell.seed), cell.fingerprint, state, *costs])
    # 2. The missing ones together.
    flops = sum(cost.flops or 0.0 for cost in missing)
    disk = sum(cost.disk for cost in missing)
    summary = (
        f"{len(rows)} cells, {len(missing)} to run: {flops:.2e} FLOPs of training, {size(disk)} of "
        "checkpoints"
    )
    if any(cost.flops is None for cost in missing):
        summary += ", without the cells whose FLOPs are not known"
    if rate and missing:
        hours = sum(cost.hours or 0.0 for cost in missing)
        at_a_time = min(concurrent_trials(plan, max_concurrent), len(missing))
        wall = f"about {hours / at_a_time:.3g} h with {at_a_time} at a time"
        summary += f", {hours:.3g} h of trials, {wall}"
    elif missing:
        summary += "; hours are known once a run of this profile has finished here, or with --time"
    header = ["arm", "seed", "fingerprint", "state", "FLOPs", "teacher, once", "hours", "disk"]
    return f"{console_table(header, rows)}\n{summary}"


def status(plan: Plan) -> str:
    """Returns a table of the cells with their states, and how many there are of each."""
    rows = []
    for cell in plan.sweep.cells:
        state = folder_of(cell).state
        rows.append([cell.arm, str(cell.seed), cell.fingerprint, state, detail(cell, state)])
    counts = Counter(row[3] for row in rows)
    states = ("done", "running", "failed", "pending")
    summary = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    return f"{console_table(['arm', 'seed', 'fingerprint', 'state', ''], rows)}\n{summary}"


def detail(cell: Cell, state: str) -> str:
    """Returns what `status` says of a cell besides its state."""
    if state == "done":
        return ""
    if state == "failed":
        return folder_of(cell).reason()
    epochs = cell.config.train.epochs
    progress = folder_of(cell).journal.progress(epochs)
    if state == "pending" and not progress.epoch:
        return ""
    text = f"epoch {progress.epoch:.1f} of {epochs}"
    # The pace of a pending cell is that of an earlier attempt, and nothing is trained now.
    if state == "running" and progress.seconds_left is not None:
        text += f", {duration(progress.seconds_left)} left"
    return text


def number(value: float | None, form: str) -> str:
    """Writes a number in this form, or a dash if it is not known."""
    return UNKNOWN if value is None else format(value, form)


def size(num_bytes: int) -> str:
    """Writes a number of bytes, with powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
