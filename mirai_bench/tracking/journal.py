"""The journal of a run: one JSON object per line, of which MLflow, tables and figures are views.

Every line has `kind` (start, train, evaluation or end), `time` (seconds since 1970), `step` and
`epoch`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


class Journal:
    """The journal of one run, which one process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields the complete lines, oldest first."""
        return read_journal(self.path)

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

    def has(self, kind: str, step: int) -> bool:
        """Tells whether there is a line of this kind at this step."""
        return any(line["kind"] == kind and line["step"] == step for line in self.lines())
