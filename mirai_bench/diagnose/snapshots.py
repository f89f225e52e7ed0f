"""The weights that a run still has: those of its newest checkpoint, and of the epochs that were kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor

from mirai_bench.checkpoint.store import load_latest, load_weights
from mirai_bench.config.run_config import RunConfig
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.tensors import read_tensors

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """The weights of a run after a step."""

    step: int
    epoch: float
    ema: Weights
    student: Weights | None
    """The trained weights and, under `foresight.`, the heads. None if only the EMA was kept."""


class Place(NamedTuple):
    """Where a snapshot is, which is loaded when it is needed."""

    step: int
    epoch: float
    load: Callable[[], Snapshot]


def places(folder: RunFolder, config: RunConfig, steps_per_epoch: int) -> list[Place]:
    """Returns the snapshots of a run, oldest first.

    Raises UserError if every checkpoint is damaged.
    """
    found: dict[int, Place] = {}  # by step
    for epoch in range(1, config.train.epochs + 1):
        if folder.kept_file(epoch).is_file():
            step = epoch * steps_per_epoch
            found[step] = Place(step, epoch, partial(_kept, folder, epoch, step))
    newest = load_latest(folder)
    if newest is not None:
        # It holds everything, so it replaces what was kept of the same step.
        step = newest.state["step"]
        snapshot = Snapshot(step, step / steps_per_epoch, newest.tensors["ema"], newest.tensors["model"])
        found[step] = Place(step, snapshot.epoch, lambda: snapshot)
    return [found[step] for step in sorted(found)]


def _kept(folder: RunFolder, epoch: int, step: int) -> Snapshot:
    student = folder.kept_student_file(epoch)
    weights = read_tensors(student) if student.is_file() else None
    return Snapshot(step, epoch, load_weights(folder.kept_file(epoch)), weights)
