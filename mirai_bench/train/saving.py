"""Writes the checkpoints of a run: from a thread where the state is on a GPU, so that training goes on."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from mirai_bench.checkpoint.store import Checkpoint, save_checkpoint
from mirai_bench.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes one checkpoint after the other. Leaving its block waits until the last one is on the disk."""

    def __init__(self, folder: RunFolder, keep: int, in_thread: bool) -> None:
        """`keep` checkpoints stay. With `in_thread` the state is copied to the host's memory first."""
        self.folder = folder
        self.keep = keep
        self.in_thread = in_thread
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Writes the checkpoint of `step`, after the one before.

        Raises UserError if the disk is full: now, or from a thread at the next `save` or `wait`.
        """
        self.wait()
        if not self.in_thread:
            save_checkpoint(self.folder, step, checkpoint, self.keep)
            return
        # The next step changes the tensors in their places.
        tensors = {
            file: {name: tensor.to("cpu", copy=True) for name, tensor in content.items()}
            for file, content in checkpoint.tensors.items()
        }
        copied = Checkpoint(tensors, checkpoint.state)
        self._writing = self._thread.submit(save_checkpoint, self.folder, step, copied, self.keep)

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk. Raises what its writing has raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The run's lock is released after this, and then nobody may write in its folder.
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            log.warning(f"{failed}")  # what ended the run matters more
        finally:
            self._thread.shutdown()
