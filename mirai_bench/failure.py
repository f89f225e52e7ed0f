"""failed.json: why an attempt at a run ended, and what the next one is to know."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .journal import write_atomic
from .ranks import rank_and_world


class RunFailed(Exception):
    """The run cannot go on; failed.json says why."""

    def __init__(self, reason: str, step: int | None = None) -> None:
        super().__init__(reason)
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:  # it travels from a worker to its trial
        return RunFailed, (str(self), self.step)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device, or of the machine as PyTorch's allocator on the CPU says it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error) and "allocate memory" in str(error)
    )


def leave_failure(run_dir: Path, error: BaseException, micro_batches: int | None = None) -> None:
    """`final`: another attempt would end the same way. `micro_batches`: what the next attempt starts with, after too little memory.

    Of several ranks the first to fail says why: the others fail because it is gone.
    """
    rank, world = rank_and_world()
    file, mine = run_dir / "failed.json", run_dir / f"failed.{rank}.json"
    if world > 1 and file.exists():
        return
    final = isinstance(error, (RunFailed, UserError))
    content = {
        "reason": str(error) if final else f"{type(error).__name__}: {error}",
        "step": getattr(error, "step", None),
        "final": final,
    }
    with contextlib.suppress(OSError):  # the disk may be full, which is then what `error` says
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(mine, json.dumps(content | ({"micro_batches": micro_batches} if micro_batches else {})))
        os.replace(mine, file)


def failure_left(run_dir: Path) -> dict[str, Any]:
    """Nothing where there is none, or none that can be read."""
    try:
        found = json.loads((run_dir / "failed.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def take_failure(run_dir: Path) -> dict[str, Any]:
    """What the last attempt left, which is then no more: a new one has begun."""
    found = failure_left(run_dir)
    (run_dir / "failed.json").unlink(missing_ok=True)
    return found
