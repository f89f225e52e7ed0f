"""The journal of a run: one JSON object per line, of which MLflow, tables and figures are views.

Every line has `kind` (start, train, evaluation or end), `time` (seconds since 1970), `step` and
`epoch`. How far a run is, and what it spent its time on, is read from these lines. The last field of
a line, `crc`, is the CRC-32 of the line without it: a damaged number is still a number.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import append_line, write_text

log = logging.getLogger(__name__)

_warned: set[Path] = set()  # journals whose damaged lines have been mentioned


# The end of a line with a checksum, and without one.
_CHECKED = re.compile(rb', "crc": "([0-9a-f]{8})"\}\n$')


def encoded(line: dict[str, Any]) -> str:
    """Returns a line as it is written, without its line end."""
    text = json.dumps(line)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}'


def _decoded(line: bytes) -> dict[str, Any] | None:
    """Returns the content of a line, or None if it is damaged. Older lines have no checksum."""
    checked = _CHECKED.search(line)
    if checked is not None:
        line = line[: checked.start()] + b"}"
        if zlib.crc32(line) != int(checked[1], 16):
            return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        return None
    # A checksum that was itself damaged.
    name, value = list(found.items())[-1]
    was_checked = len(name) == 3 and isinstance(value, str) and len(value) == 8
    return None if checked is None and was_checked else found


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the complete lines of a journal. Yields nothing if there is no such file.

    A last line without a line end was being written when the process died, and is left out. So are
    lines that are damaged, as a loss of power may leave them: a warning says how many, once.
    """
    if not path.is_file():
        return
    damaged = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # only the last line can be cut off
                break
            found = _decoded(line)
            if found is None:
                damaged.append(number)
            else:
                yield found
    if damaged and path not in _warned:
        _warned.add(path)
        log.warning(f"{path}: {len(damaged)} damaged lines are left out, the first is line {damaged[0]}")


def is_line(line: dict[str, Any]) -> bool:
    """Tells whether a line has what every line of a run has, and an evaluation its metrics."""
    if not all(_is_number(line.get(key)) for key in ("time", "step", "epoch")):
        return False
    if line["kind"] == "evaluation":
        return isinstance(line.get("metrics"), dict) and isinstance(line.get("protocol_digest"), str)
    return line["kind"] not in ("train", "end") or _is_number(line.get("train_seconds"))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class Counts(NamedTuple):
    """How much a journal holds."""

    lines: int = 0
    evaluations: int = 0


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
        write_text(self.path, "".join(encoded(line) + "\n" for line in kept))

    def append(self, line: dict[str, Any], *, durable: bool = False) -> None:
        """Appends one line. With `durable` it is on the disk before this returns.

        That is a wait for the disk, which a line every few steps is not worth. Raises UserError if the
        disk is full.
        """
        try:
            append_line(self.path, encoded(line), durable=durable)
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written: {error}. The last checkpoint is intact."
            ) from error

    def sync(self) -> None:
        """Waits until all lines are on the disk. A checkpoint says how many there were."""
        if self.path.is_file():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    # ---- what others read

    def lines(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Yields the complete lines, oldest first: those of one kind, or all."""
        lines = filter(is_line, read_journal(self.path))
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

    def counts(self) -> Counts:
        """Returns the numbers of lines and of evaluations, without parsing the lines."""
        # The sender to MLflow asks all runs of a sweep every two seconds.
        if not self.path.is_file():
            return Counts(0, 0)
        content = self.path.read_bytes()
        content = content[: content.rfind(b"\n") + 1]  # without a line that was cut off
        return Counts(content.count(b"\n"), content.count(b'"kind": "evaluation"'))

    def check(self, then: Counts) -> None:
        """Raises UserError if the journal holds fewer evaluations than it did `then`.

        They cannot be made again, because the weights of then are gone. Of other lines that are
        gone it warns: they are points of curves.
        """
        now = self.counts()
        if now.evaluations < then.evaluations:
            raise UserError(
                f"{self.path} holds {now.evaluations} evaluations, but held {then.evaluations} when the "
                "last checkpoint was written: put it back from a copy, or remove the run's folder to "
                "train it again"
            )
        if now.lines < then.lines:
            log.warning(f"{self.path} has lost {then.lines - now.lines} of {then.lines} lines")
