"""failed.json: why an attempt at a run ended, and what the next one is to know."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from mirai_bench.config.run_config import RunConfig
from mirai_bench.tracking.journal import read_journal
from mirai_bench.utils.distributed import rank_and_world
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic


class RunFailed(Exception):
    """The run cannot go on; failed.json says why."""

    def __init__(self, reason: str, step: int | None = None) -> None:
        super().__init__(reason)
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:  # it travels from a worker to its trial
        return RunFailed, (str(self), self.step)


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


@contextmanager
def locked(run_dir: Path, wait: bool) -> Iterator[None]:
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / "run.lock", timeout=-1 if wait else 0):
            yield
    except Timeout:
        raise UserError(f"{run_dir} is being trained by another process") from None


def written(run_dir: Path) -> int:
    """When failed.json was, in nanoseconds."""
    file = run_dir / "failed.json"
    return file.stat().st_mtime_ns if file.is_file() else 0


State = Literal["done", "running", "failed", "pending"]


def state_of(run_dir: Path) -> State:
    """A finished or failed run has left its file; a running one holds its lock, however its process may end."""
    if (run_dir / "done.json").is_file():
        return "done"
    if _is_locked(run_dir / "run.lock"):
        return "running"
    return "failed" if (run_dir / "failed.json").is_file() else "pending"


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def failure_of(run_dir: Path) -> str:
    """The reason that failed.json gives."""
    try:
        found = json.loads((run_dir / "failed.json").read_bytes())
        return f"{found['reason']}" + (f" (step {found['step']})" if found.get("step") is not None else "")
    except (OSError, ValueError, KeyError, TypeError):
        return "no reason was left"


@dataclass(frozen=True)
class Progress:
    epoch: float
    seconds_left: float | None
    """at the pace since the run was last started"""


def progress_of(run_dir: Path, config: RunConfig) -> Progress:
    """How far a run has come, from its journal."""
    first = last = None
    for line in read_journal(run_dir / "journal.jsonl"):
        first = line if line["kind"] == "start" or first is None else first
        last = line
    if last is None:
        return Progress(0.0, None)
    advanced = last["epoch"] - first["epoch"]
    pace = (last["time"] - first["time"]) / advanced if advanced > 0 else None  # seconds an epoch
    since = time.time() - last["time"]
    left = None if pace is None else max(0.0, pace * (config.train.epochs - last["epoch"]) - since)
    return Progress(last["epoch"], left)


def began_after(start: float, run_dir: Path) -> float:
    """When the workers of a trial that came up at `start` began to train; `start` where they did not."""
    starts = [line["time"] for line in read_journal(run_dir / "journal.jsonl") if line["kind"] == "start"]
    return min((time for time in starts if time > start), default=start)


@contextlib.contextmanager
def log_of(run_dir: Path) -> Iterator[None]:
    """What a run says goes to its log.txt: on the terminal several would talk at once."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (
        open(run_dir / "log.txt", "a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stderr(log),
        contextlib.redirect_stdout(log),
    ):
        yield


def measured_parts(run_dir: Path) -> dict[str, float]:
    """Seconds that the journal accounts for, by what a run is for."""
    parts = {"training steps": 0.0, "sampling": 0.0, "evaluation": 0.0}
    for line in read_journal(run_dir / "journal.jsonl"):
        if line["kind"] in ("train", "end"):
            parts["training steps"] = line["train_seconds"]
        elif line["kind"] == "evaluation":
            parts["sampling"] += line["sample_seconds"]
            parts["evaluation"] += line["evaluate_seconds"]
    return parts


def measured_seconds(run_dir: Path) -> float:
    return sum(measured_parts(run_dir).values())
