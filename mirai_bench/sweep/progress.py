"""What the terminal shows while cells run, on stderr.

It is one line that renews itself, or a line now and then in a file.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time

from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.estimate import cell_flops
from mirai_bench.sweep.plan import Plan, folder_of
from mirai_bench.tracking.run_folder import State

log = logging.getLogger(__name__)

EVERY_SECONDS = 15.0  # between two lines where stderr is not a terminal
ENDED = ("done", "failed")
MOST_RUNNING_SHOWN = 4  # cells named in the line, which has to fit a terminal
CLEAR_LINE = "\r\x1b[K"


def duration(seconds: float) -> str:
    """Writes a duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Screen:
    """Follows the run folders of the cells and shows how far they are."""

    def __init__(self, plan: Plan, cells: list[Cell]) -> None:
        self.cells = cells
        self.total = len(plan.sweep.cells)
        self.done_before = self.total - len(cells)
        self.live = sys.stderr.isatty()
        self.last_line = time.monotonic()
        self.start: float | None = None  # when the first cell ran
        self.since = time.time()
        self.states: dict[str, State] = {cell.fingerprint: "pending" for cell in cells}
        self.fraction_before = {cell.fingerprint: self._fraction(cell) for cell in cells}
        self.work = work_of(cells)
        log.info(
            f"{plan.sweep.axis} ({plan.profile}): {self.total} cells, {self.done_before} done "
            f"before, {len(cells)} to run; runs are in {plan.runs}"
        )

    def refresh(self) -> None:
        """Reads the run folders. Called about once per second."""
        # 1. What has changed since the last look.
        for cell in self.cells:
            before = self.states[cell.fingerprint]
            if before == "done":  # a failed cell may be at its next attempt
                continue
            now = self._state(cell)
            self.states[cell.fingerprint] = now
            if self.start is None and now == "running":
                self.start = time.monotonic()
            if now in ENDED and now != before:
                reason = f": {folder_of(cell).reason()}" if now == "failed" else ""
                self._renew("")
                log.info(f"{now}: {cell.arm}, seed {cell.seed}{reason}")
        # 2. The line.
        if self.live:
            width = shutil.get_terminal_size().columns - 1  # a full line would scroll
            self._renew(self.line()[:width])
        elif time.monotonic() - self.last_line >= EVERY_SECONDS:
            self.last_line = time.monotonic()
            log.info(self.line())

    def close(self) -> None:
        """Shows the last changes and leaves the line empty."""
        self.refresh()
        self._renew("")

    def line(self) -> str:
        """Returns the line that is shown."""
        states = list(self.states.values())
        failed = states.count("failed")
        of_failed = f", {failed} failed" if failed else ""
        parts = [f"{self.done_before + states.count('done')}/{self.total} done{of_failed}"]
        running = [cell for cell in self.cells if self.states[cell.fingerprint] == "running"]
        for cell in running[:MOST_RUNNING_SHOWN]:
            epochs = cell.config.train.epochs
            epoch = folder_of(cell).journal.progress(epochs).epoch
            parts.append(f"{cell.arm} s{cell.seed} epoch {epoch:.1f}/{epochs}")
        if len(running) > MOST_RUNNING_SHOWN:
            parts.append(f"and {len(running) - MOST_RUNNING_SHOWN} more")
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return " · ".join(parts)

    def _renew(self, text: str) -> None:
        """Replaces the line on a terminal. Does nothing elsewhere."""
        if self.live:
            print(f"{CLEAR_LINE}{text}", end="", file=sys.stderr, flush=True)

    def _state(self, cell: Cell) -> State:
        """Ignores failed.json files older than this command: those cells will be retried."""
        folder = folder_of(cell)
        state = folder.state
        is_stale = state == "failed" and folder.failure_written_at() < self.since
        return "pending" if is_stale else state

    def _fraction(self, cell: Cell) -> float:
        """Returns the fraction of its training that a cell has behind it."""
        epochs = cell.config.train.epochs
        return min(1.0, folder_of(cell).journal.progress(epochs).epoch / epochs)

    def _seconds_left(self) -> float | None:
        """Returns the time left at the pace since the first cell ran, or None without a pace."""
        # Work counts in FLOPs (or epochs), because cells of different arms take different times. What
        # is left takes elapsed · left / advanced at the same pace.
        advanced = 0.0
        left = 0.0
        for cell in self.cells:
            work = self.work[cell.fingerprint]
            before = self.fraction_before[cell.fingerprint]  # trained by earlier commands
            state = self.states[cell.fingerprint]
            fraction = before
            if state in ENDED:
                fraction = 1.0  # a failed cell has no work left, either
            elif state == "running":
                fraction = self._fraction(cell)
            advanced += work * (fraction - before)
            left += work * (1 - fraction)
        if self.start is None or advanced <= 0:
            return None
        return (time.monotonic() - self.start) * left / advanced


def work_of(cells: list[Cell]) -> dict[str, float]:
    """Returns the work of each cell: its FLOPs or, if those of any are not known, its epochs."""
    flops = {cell.fingerprint: cell_flops(cell.config) for cell in cells}
    known = {fingerprint: work for fingerprint, work in flops.items() if work is not None}
    # FLOPs and epochs are not mixed: one cell would weigh 1e12 times as much as another.
    if len(known) == len(flops):
        return known
    return {cell.fingerprint: float(cell.config.train.epochs) for cell in cells}
