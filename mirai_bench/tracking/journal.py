"""The run's journal: one JSON object a line, the source of truth that MLflow, tables and figures are views of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines only: a last line that was being written when the process died is not there yet."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Forgets what lies after `step` (it will be trained and written again), and any half-written last line."""
        if self.path.exists():
            kept = [
                line for line in read_journal(self.path) if line["step"] <= step and line["kind"] != "end"
            ]
            write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: dict[str, Any], *, durable: bool = False) -> None:
        """durable: on the disk before this returns. Raises UserError where the disk is full; the half-written line is ignored by readers."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written: {error}. The last checkpoint is intact."
            ) from error

    def has(self, kind: str, step: int) -> bool:
        return any(line["kind"] == kind and line["step"] == step for line in read_journal(self.path))
