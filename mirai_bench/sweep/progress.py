"""What the terminal shows while cells run: one line that renews itself, or plain lines where nobody watches. All on stderr."""

from __future__ import annotations

import shutil
import sys
import time

from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.estimate import cell_flops
from mirai_bench.sweep.plan import Plan, run_dir_of
from mirai_bench.tracking.run_folder import State, failure_of, progress_of, state_of
from mirai_bench.utils.cli import say

EVERY_SECONDS = 15.0  # a plain line


FINAL = ("done", "failed")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Screen:
    def __init__(self, plan: Plan, cells: list[Cell]) -> None:
        self.cells = cells
        self.total = len(plan.sweep.cells)
        self.before = self.total - len(cells)
        self.live = sys.stderr.isatty()
        self.last = time.monotonic()
        self.start: float | None = None  # of the first cell that ran
        self.work = {
            cell.fingerprint: cell_flops(cell.config) or float(cell.config.train.epochs) for cell in cells
        }
        self.begun = {cell.fingerprint: self._fraction(cell) for cell in cells}
        self.since = time.time()
        self.states: dict[str, State] = {cell.fingerprint: "pending" for cell in cells}
        say(
            f"{plan.sweep.axis} ({plan.profile}): {self.total} cells, {self.before} done before, {len(cells)} to run; runs are in {plan.runs}"
        )

    def refresh(self) -> None:
        """Called about once a second; reads the run folders."""
        for cell in self.cells:
            was = self.states[cell.fingerprint]
            if was != "done":  # a failed one may be at its next attempt
                now = self.states[cell.fingerprint] = self._state(cell)
                self.start = self.start or (time.monotonic() if now == "running" else None)
                if now in FINAL and now != was:
                    self._say_ended(cell, now)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{self.line()[:width]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last >= EVERY_SECONDS:
            self.last = time.monotonic()
            say(self.line())

    def close(self) -> None:
        self.refresh()
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        ended = [state for state in self.states.values() if state in FINAL]
        failed = ended.count("failed")
        running = [
            f"{cell.arm} s{cell.seed} epoch {progress_of(run_dir_of(cell), cell.config).epoch:.1f}/{cell.config.train.epochs}"
            for cell in self.cells
            if self.states[cell.fingerprint] == "running"
        ]
        left = self._seconds_left()
        parts = [
            f"{self.before + ended.count('done')}/{self.total} done"
            + (f", {failed} failed" if failed else ""),
            *running[:4],
        ]
        parts += [f"and {len(running) - 4} more"] if len(running) > 4 else []
        return " · ".join(parts + ([f"{duration(left)} left"] if left is not None else []))

    def _state(self, cell: Cell) -> State:
        """A failure of an earlier command is none of this one: the cell is about to be tried again."""
        state, reason = state_of(run_dir_of(cell)), run_dir_of(cell) / "failed.json"
        stale = state == "failed" and reason.is_file() and reason.stat().st_mtime < self.since
        return "pending" if stale else state

    def _say_ended(self, cell: Cell, state: State) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr)
        reason = f": {failure_of(run_dir_of(cell))}" if state == "failed" else ""
        say(f"{state}: {cell.arm}, seed {cell.seed}{reason}")

    def _fraction(self, cell: Cell) -> float:
        return min(1.0, progress_of(run_dir_of(cell), cell.config).epoch / cell.config.train.epochs)

    def _seconds_left(self) -> float | None:
        """At the pace, in training FLOPs, of all cells since the first of them ran."""
        advanced = left = 0.0
        for cell in self.cells:
            key, state = cell.fingerprint, self.states[cell.fingerprint]
            share = 1.0 if state in FINAL else self._fraction(cell) if state == "running" else self.begun[key]
            advanced += self.work[key] * (share - self.begun[key])
            left += self.work[key] * (1 - share)
        return (time.monotonic() - self.start) * left / advanced if advanced > 0 and self.start else None
