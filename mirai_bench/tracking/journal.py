"""The journal of a run: one JSON object per line, of which MLflow, tables and figures are views.

Every line has `kind` (start, train, evaluation or end), `time` (seconds since 1970), `step` and
`epoch`. How far a run is, and what it spent its time on, is read from these lines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_text


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the complete lines of a journal. Yields nothing if there is no such file.

    A last line without a line end was being written when the process died, and is left out.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # only the last line can be cut off
                yield json.loads(line)


class Progress(NamedTuple):
    """How far a run has come."""

    epoch: float
    seconds_left: float | None
    """At the pace since the run was last started. None if there is no pace yet."""


class Journal:
    """The journal of one run, which one process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- what the run writes

    def rewind(self, step: int) -> None:
        """Removes what lies after `step`, which is trained again, and a half-written last line."""
        if not self.path.exists():
            return
        # A line `end` at that very step would say that the run is over.
        kept = [line for line in self.lines() if line["step"] <= step and line["kind"] != "end"]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: dict[str, Any], *, durable: bool = False) -> None:
        """Appends one line. With `durable` it is on the disk before this returns.

        Raises UserError if the disk is full. Readers ignore the half-written line.
        """
        try:
            # Opened for each line: whoever moves or rewinds the file finds no open handle on it.
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                if durable:  # a wait for the disk, which a line every few steps is not worth
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written: {error}. The last checkpoint is intact."
            ) from error

    # ---- what others read

    def lines(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Yields the complete lines, oldest first: those of one kind, or all."""
        lines = read_journal(self.path)
        return lines if kind is None else (line for line in lines if line["kind"] == kind)

    def has(self, kind: str, step: int) -> bool:
        """Tells whether there is a line of this kind at this step."""
        return any(line["step"] == step for line in self.lines(kind))

    def progress(self, epochs: int) -> Progress:
        """Returns how far a run of so many epochs has come."""
        # The pace is measured from the last start: an earlier part may have run on another machine.
        first = None
        last = None
        for line in self.lines():
            if first is None or line["kind"] == "start":
                first = line
            last = line
        if first is None or last is None:
            return Progress(0.0, None)
        advanced = last["epoch"] - first["epoch"]
        if advanced <= 0:
            return Progress(last["epoch"], None)
        # Training has gone on since the last line was written.
        seconds_per_epoch = (last["time"] - first["time"]) / advanced
        since_last_line = time.time() - last["time"]
        left = seconds_per_epoch * (epochs - last["epoch"]) - since_last_line
        return Progress(last["epoch"], max(0.0, left))

    def started_after(self, moment: float) -> float | None:
        """Returns when training first started after `moment` (seconds since 1970), or None."""
        starts = [line["time"] for line in self.lines("start")]
        return min((start for start in starts if start > moment), default=None)

    def measured_seconds(self) -> dict[str, float]:
        """Returns the seconds that training steps, sampling and evaluation have taken so far."""
        seconds = {"training steps": 0.0, "sampling": 0.0, "evaluation": 0.0}
        for line in self.lines():
            if line["kind"] in ("train", "end"):  # the sum since the first step
                seconds["training steps"] = line["train_seconds"]
            elif line["kind"] == "evaluation":
                seconds["sampling"] += line["sample_seconds"]
                seconds["evaluation"] += line["evaluate_seconds"]
        return seconds

    def num_evaluations(self) -> int:
        """Returns the number of evaluations, without parsing the lines."""
        # The sender to MLflow asks all runs of a sweep every two seconds.
        if not self.path.is_file():
            return 0
        return self.path.read_bytes().count(b'"kind": "evaluation"')
