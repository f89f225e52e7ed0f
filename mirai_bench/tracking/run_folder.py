"""The folder of a run. This is the only module that knows the names of the files in it.

runs/<fingerprint>/
config.json       the resolved configuration
journal.jsonl     every logged step and evaluation (journal.py)
checkpoints/      step_00000690/ and so on (checkpoint/store.py)
samples/          one grid of images per evaluation
done.json         written when the last step is trained and evaluated
failed.json       why the last attempt ended; the next attempt removes it
kept/             weights of the epochs of machine.keep_at
diagnosis.jsonl   what diagnostics found out about its checkpoints (records of mirai_bench.diagnose)
run.lock          held by the process that trains the run
mlflow.lock       held by the process that sends the run to MLflow
log.txt           what the run said while a sweep trained it
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from mirai_bench.tracking.failure import Failure
from mirai_bench.tracking.journal import Counts, Journal
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import locked, write_text

log = logging.getLogger(__name__)

State = Literal["done", "running", "failed", "pending"]

# The folder of sample grids. The artifacts of an MLflow run have one of the same name.
GRIDS = "samples"
PROFILE = re.compile(r"\w[\w.+-]*")  # it names files
NO_REASON = "no reason was left"  # instead of a failure's reason


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, `<runs>/<fingerprint>`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    # ---- the names of its files

    @property
    def config_file(self) -> Path:
        """Returns the path of the resolved configuration."""
        return self.path / "config.json"

    @property
    def journal(self) -> Journal:
        """Returns the journal."""
        return Journal(self.path / "journal.jsonl")

    @property
    def diagnosis_file(self) -> Path:
        """Returns the path of what diagnostics found out."""
        return self.path / "diagnosis.jsonl"

    @property
    def done_file(self) -> Path:
        """Returns the path of the file that a finished run has."""
        return self.path / "done.json"

    @property
    def failure_file(self) -> Path:
        """Returns the path of the file that says why the last attempt ended."""
        return self.path / "failed.json"

    @property
    def log_file(self) -> Path:
        """Returns the path of what the run said while a sweep trained it."""
        return self.path / "log.txt"

    @property
    def lock_file(self) -> Path:
        """Returns the path of the lock that the process that trains the run holds."""
        return self.path / "run.lock"

    @property
    def checkpoints(self) -> Path:
        """Returns the path of the folder of checkpoints."""
        return self.path / "checkpoints"

    def kept_file(self, epoch: int) -> Path:
        """Returns the path of the EMA weights that are kept of an epoch (`machine.keep_at`)."""
        return self.path / "kept" / f"epoch_{epoch:04d}.safetensors"

    def kept_student_file(self, epoch: int) -> Path:
        """Returns the path of the trained weights and heads that are kept beside them."""
        return self.path / "kept" / f"epoch_{epoch:04d}_student.safetensors"

    @property
    def grids(self) -> Path:
        """Returns the path of the folder of sample grids."""
        return self.path / GRIDS

    def grid_file(self, epoch: float) -> Path:
        """Returns the path of the grid of an evaluation, relative to the run's folder."""
        # Leading zeros make names sort as epochs do. Records hold this path: a run may be moved.
        return Path(GRIDS) / f"epoch_{epoch:07.2f}.png"

    def grid_of(self, record: dict[str, Any]) -> Path | None:
        """Returns the grid that a record names, or None if the run's folder has no such image."""
        # The folder may come from somebody else: nothing outside of it is read for it.
        grid = self.grids / Path(str(record.get("grid"))).name
        is_own = grid.resolve().is_relative_to(self.path.resolve()) and grid.suffix == ".png"
        return grid if is_own and grid.is_file() else None

    # ---- the configuration

    @property
    def holds_run(self) -> bool:
        """Tells whether a run has been started in this folder."""
        return self.config_file.is_file()

    def check(self) -> None:
        """Raises UserError if this is not the folder of a run."""
        if not self.holds_run:
            raise UserError(
                f"{str(self.path)!r} is not a run folder (it has no {self.config_file.name}): "
                "write for instance runs/3f2a9c01b7de"
            )

    def config_fields(self) -> dict[str, Any]:
        """Returns the run's configuration as plain fields.

        `config.load.load_run` makes a RunConfig of them. Raises UserError if the file is damaged.
        """
        self.check()
        try:
            fields = json.loads(self.config_file.read_bytes())
            if PROFILE.fullmatch(fields["profile"]) and type(fields["seed"]) is int and "machine" in fields:
                return fields
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        raise UserError(f"{self.config_file} is no configuration of a run: it is damaged, or of another kind")

    def check_config(self) -> None:
        """Raises UserError if the configuration is not the one that the run was last started with.

        The journal has it, too: a damaged number is still a number.
        """
        started: dict[str, Any] = {}
        for line in self.journal.lines("start"):
            started = line.get("config", {})
        for name, section in self.config_fields().items():
            if name != "machine" and started.get(name, section) != section:
                raise UserError(
                    f"{self.config_file} was changed: {name} is {section}, but the journal says that the run "
                    f"was started with {started[name]}"
                )

    def write_config(self, text: str) -> None:
        """Writes the configuration (JSON), and makes the folder if there is none."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, text)

    # ---- the state

    @property
    def state(self) -> State:
        """Returns the state of the run, by the one rule that all commands share.

        A run with done.json is done. A run whose lock is held is running: the system releases the
        lock when the process ends, however it ends. Of the others, a run with failed.json has
        failed, and the rest are pending.
        """
        if self.is_done:
            return "done"
        if self._is_locked():
            return "running"
        return "failed" if self.failure_file.is_file() else "pending"

    @property
    def is_done(self) -> bool:
        """Tells whether the run has finished."""
        return self.done_file.is_file()

    def mark_done(self, step: int, seconds: float) -> None:
        """Records that the run has ended at this step after so many seconds of training."""
        done = {"step": step, "seconds": seconds, "journal": self.journal.counts()}
        write_text(self.done_file, json.dumps(done))

    def warn_of_lost_lines(self) -> None:
        """Warns if the journal of a finished run holds fewer evaluations than it did at the end."""
        try:
            then = Counts(*json.loads(self.done_file.read_bytes())["journal"])
            lost = then.evaluations - self.journal.counts().evaluations
        except (OSError, ValueError, LookupError, TypeError):  # not finished, or by an earlier version
            return
        if lost > 0:
            log.warning(f"{self.journal.path} has lost {lost} of {then.evaluations} evaluations")

    def training_seconds(self) -> float | None:
        """Returns how long the training of a finished run took, or None if it has not ended."""
        try:
            done: dict[str, float] = json.loads(self.done_file.read_bytes())
        except FileNotFoundError:
            return None
        return done.get("seconds")

    @property
    def has_weights(self) -> bool:
        """Tells whether there is a checkpoint, or weights that were kept of an epoch."""
        return self.checkpoints.is_dir() or (self.path / "kept").is_dir()

    def reopen_without_weights(self) -> None:
        """Makes a finished run pending if it has no checkpoint, because somebody needs its weights."""
        # It was taken from frozen records, or its checkpoints were deleted. It is trained again.
        if self.is_done and not self.checkpoints.is_dir():
            self.done_file.unlink(missing_ok=True)

    def lock(self, *, wait: bool) -> contextlib.AbstractContextManager[None]:
        """Returns a context that holds the run's lock.

        If another process holds it, this waits or, without `wait`, raises UserError.
        """
        return locked(self.lock_file, f"{self.path} is being trained by another process", wait=wait)

    def _is_locked(self) -> bool:
        if not self.lock_file.is_file():
            return False
        try:
            with FileLock(self.lock_file, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that may only be read, which is then not trained from here
            return False

    def mlflow_lock(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context that holds the lock of the process that sends the run to MLflow."""
        return locked(self.path / "mlflow.lock", wait=True)

    # ---- failures

    def failure(self) -> Failure | None:
        """Returns why the last attempt ended, or None if it left no failed.json."""
        try:
            found = json.loads(self.failure_file.read_bytes())
            # Another version may have written other fields.
            return Failure(**{name: found[name] for name in Failure._fields if name in found})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):  # damaged, or no object, or one without a reason
            return Failure(NO_REASON)

    def reason(self) -> str:
        """Returns in words why the last attempt ended.

        There may be no failed.json any more, because a new attempt takes it away.
        """
        return str(self.failure() or NO_REASON)

    def take_failure(self) -> Failure | None:
        """Returns and deletes failed.json, because a new attempt has started."""
        found = self.failure()
        self.failure_file.unlink(missing_ok=True)
        return found

    def write_failure(self, failure: Failure) -> None:
        """Writes failed.json, unless this attempt has already left one.

        If several ranks fail, the first one has the reason: the others fail because it is gone.
        """
        if self.failure_file.exists():
            return
        content = failure._asdict()
        for name in ("micro_batches", "traceback"):
            if content[name] is None:
                del content[name]
        with contextlib.suppress(OSError):  # a full disk, which is then what `failure` says
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.failure_file, json.dumps(content))

    def failure_written_at(self) -> float:
        """Returns when failed.json was written (seconds since 1970), or 0 if there is none."""
        try:
            return self.failure_file.stat().st_mtime_ns / 1e9
        except FileNotFoundError:
            return 0.0

    # ---- what the run says

    @contextlib.contextmanager
    def log(self) -> Iterator[None]:
        """Redirects stdout and stderr to the log file: the runs of a sweep share one terminal."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (
            open(self.log_file, "a", encoding="utf-8", buffering=1) as log,  # line by line
            contextlib.redirect_stderr(log),
            contextlib.redirect_stdout(log),
        ):
            yield
