"""What the terminal shows while cells run, on stderr: one line that renews itself, or a line now and then in a file."""

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
MOST_RUNNING_SHOWN = 4
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
        self.work = self._work_of(cells)
        log.info(
            f"{plan.sweep.axis} ({plan.profile}): {self.total} cells, {self.done_before} done before, {len(cells)} to "
            f"run; runs are in {plan.runs}"
        )

    @staticmethod
    def _work_of(cells: list[Cell]) -> dict[str, float]:
        """Returns the work of each cell: its training FLOPs or, if those of any cell are not known, its epochs."""
        flops = {cell.fingerprint: cell_flops(cell.config) for cell in cells}
        known = {fingerprint: work for fingerprint, work in flops.items() if work is not None}
        if len(known) == len(flops):
            return known
        return {cell.fingerprint: float(cell.config.train.epochs) for cell in cells}

    def refresh(self) -> None:
        """Reads the run folders. Called about once per second."""
        for cell in self.cells:
            before = self.states[cell.fingerprint]
            if before == "done":  # a failed cell may be at its next attempt
                continue
            now = self._state(cell)
            self.states[cell.fingerprint] = now
            if self.start is None and now == "running":
                self.start = time.monotonic()
            if now in ENDED and now != before:
                self._log_ended(cell, now)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"{CLEAR_LINE}{self.line()[:width]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last_line >= EVERY_SECONDS:
            self.last_line = time.monotonic()
            log.info(self.line())

    def close(self) -> None:
        """Shows the last changes and leaves the line empty."""
        self.refresh()
        if self.live:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        """Returns the line that is shown."""
        states = list(self.states.values())
        failed = states.count("failed")
        of_failed = f", {failed} failed" if failed else ""
        parts = [f"{self.done_before + states.count('done')}/{self.total} done{of_failed}"]
        running = [cell for cell in self.cells if self.states[cell.fingerprint] == "running"]
        for cell in running[:MOST_RUNNING_SHOWN]:
            epochs = cell.config.train.epochs
            epoch = folder_of(cell).progress(epochs).epoch
            parts.append(f"{cell.arm} s{cell.seed} epoch {epoch:.1f}/{epochs}")
        if len(running) > MOST_RUNNING_SHOWN:
            parts.append(f"and {len(running) - MOST_RUNNING_SHOWN} more")
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return " · ".join(parts)

    def _state(self, cell: Cell) -> State:
        """Ignores failed.json files older than this command: those cells will be retried."""
        folder = folder_of(cell)
        state = folder.state
        is_stale = state == "failed" and folder.failure_written_at() < self.since
        return "pending" if is_stale else state

    def _log_ended(self, cell: Cell, state: State) -> None:
        if self.live:
            print(CLEAR_LINE, end="", file=sys.stderr)
        reason = f": {folder_of(cell).failure()}" if state == "failed" else ""
        log.info(f"{state}: {cell.arm}, seed {cell.seed}{reason}")

    def _fraction(self, cell: Cell) -> float:
        """Returns the fraction of its training that a cell has behind it."""
        epochs = cell.config.train.epochs
        return min(1.0, folder_of(cell).progress(epochs).epoch / epochs)

    def _seconds_left(self) -> float | None:
        """Returns the time left at the pace of all cells since the first of them ran, or None without a pace."""
        advanced = 0.0
        left = 0.0
        for cell in self.cells:
            work = self.work[cell.fingerprint]
            before = self.fraction_before[cell.fingerprint]
            state = self.states[cell.fingerprint]
            fraction = before
            if state in ENDED:
                fraction = 1.0
            elif state == "running":
                fraction = self._fraction(cell)
            advanced += work * (fraction - before)
            left += work * (1 - fraction)
        if self.start is None or advanced <= 0:
            return None
        return (time.monotonic() - self.start) * left / advanced
