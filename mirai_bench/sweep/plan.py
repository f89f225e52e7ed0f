"""Sweep file → cells → what is there and what is missing, read from the run folders. Neither torch nor ray in here.

A cell's run folder is named by its fingerprint, so the state of a sweep is nothing but the state of those folders: the same command again
finds what is done, a new seed or arm is a new fingerprint, and a run that two sweeps share is trained once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Cell, Sweep, load_sweep
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic


@dataclass(frozen=True)
class Plan:
    sweep: Sweep
    """what this command asks for"""
    kept: tuple[Cell, ...] = ()
    """cells of earlier commands on this sweep (other seeds, other arms) that the file still says the same of"""
    file_arms: tuple[str, ...] = ()
    """with `kept`: all arms in the file's order"""

    @cached_property
    def profile(self) -> str:
        return self.sweep.cells[0].config.profile

    @cached_property
    def runs(self) -> Path:
        return self.sweep.cells[0].config.machine.runs

    @property
    def name(self) -> str:
        return f"{self.sweep.axis}-{self.profile}"

    def file(self, suffix: str) -> Path:
        return self.runs / "sweeps" / f"{self.name}{suffix}"

    def content(self) -> dict[str, Any]:
        """What tables and MLflow know of the sweep: all its cells, seed by seed, arms in the file's order."""
        order = self.file_arms or tuple(self.sweep.arms)
        cells = sorted((*self.sweep.cells, *self.kept), key=lambda cell: (cell.seed, order.index(cell.arm)))
        arms = [arm for arm in order if any(cell.arm == arm for cell in cells)]
        return {
            "axis": self.sweep.axis, "question": self.sweep.question, "baseline": self.sweep.baseline, "profile": self.profile, "arms": arms,
            "cells": [{"arm": cell.arm, "seed": cell.seed, "fingerprint": cell.fingerprint} for cell in cells],
        }  # fmt: skip

    def write(self) -> None:
        self.file(".json").parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file(".json"), json.dumps(self.content(), indent=1))


def make_plan(
    path: Path,
    *,
    profile: str | None = None,
    seeds: Iterable[int] = (),
    only: Iterable[str] = (),
    settings: Iterable[str] = (),
) -> Plan:
    """The cells of a sweep file under the command line's choices, with absolute paths. Nothing is written. Raises UserError alone."""
    seeds, only, settings = list(seeds), list(only), list(settings)
    sweep = _absolute(load_sweep(path, profile=profile, seeds=seeds, only=only, settings=settings))
    plan = Plan(sweep)
    earlier = {(c["arm"], c["seed"], c["fingerprint"]) for c in _planned(plan.file(".json"))}
    earlier -= {(c.arm, c.seed, c.fingerprint) for c in sweep.cells}
    if not earlier:
        return plan
    all_seeds = sorted({cell.seed for cell in sweep.cells} | {seed for _, seed, _ in earlier})
    whole = _absolute(load_sweep(path, profile=profile, seeds=all_seeds, settings=settings))
    kept = tuple(cell for cell in whole.cells if (cell.arm, cell.seed, cell.fingerprint) in earlier)
    return Plan(sweep, kept, tuple(whole.arms))


def _planned(file: Path) -> list[dict[str, Any]]:
    """Cells of the plan that an earlier command left."""
    try:
        return json.loads(file.read_bytes())["cells"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a readable plan ({error}): remove it, the runs themselves are not touched"
        ) from None


def _absolute(sweep: Sweep) -> Sweep:
    """Trials run in folders of their own: every path is made absolute from where the command was given."""
    return replace(
        sweep, cells=tuple(replace(cell, config=with_absolute_paths(cell.config)) for cell in sweep.cells)
    )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    def absolute(section: Any, *names: str) -> Any:
        paths = {name: getattr(section, name) for name in names}
        return section.model_copy(
            update={name: Path(os.path.abspath(path)) for name, path in paths.items() if path is not None}
        )

    foresight = absolute(config.foresight, "teacher")
    return config.model_copy(
        update={
            "machine": absolute(config.machine, "runs", "data", "codes", "assets"),
            "tokenizer": absolute(config.tokenizer, "weights"),
            "foresight": foresight.model_copy(update={"encoder": absolute(foresight.encoder, "weights")}),
        }
    )


def run_dir_of(cell: Cell) -> Path:
    return cell.config.machine.runs / cell.fingerprint


def in_order_of_execution(cells: Sequence[Cell], baseline: str) -> list[Cell]:
    """The baseline first (tables compare with it, a frozen teacher is one); then, for each teacher that a cell would train, one cell that
    trains it, beside cells that need none; then those that share a teacher; last those that need the finished baseline."""
    seen: set[tuple] = set()

    def rank(cell: Cell) -> int:
        f = cell.config.foresight
        if cell.arm == baseline:
            return 0
        if f.uses_encoder and f.encoder.weights is None:
            key = (f.teacher_seed, f.encoder.name, f.encoder.depth, f.encoder.epochs)
            first = key not in seen
            seen.add(key)
            return 1 if first else 3
        return 4 if f.level == "internal" and f.source == "frozen" and f.teacher is None else 2

    ranks = [rank(cell) for cell in cells]
    return [cells[i] for i in sorted(range(len(cells)), key=ranks.__getitem__)]
