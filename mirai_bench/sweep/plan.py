"""Sweep file → cells → what is done and what is missing, read from the run folders.

A cell's run folder is named by its fingerprint, so the state of a sweep is nothing but the state of
those folders: the same command again finds what is done, a new seed or arm is a new fingerprint,
and a run that two sweeps share is trained once. Neither torch nor ray is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from mirai_bench.config.sweep_file import Cell, Sweep, load_sweep
from mirai_bench.tracking.records import read_plan
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json
from mirai_bench.utils.hashing import digest

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Plan:
    """What a command asks for, together with what earlier commands on the same sweep asked for."""

    sweep: Sweep
    """What this command asks for."""
    kept: tuple[Cell, ...] = ()
    """Cells run by earlier commands (other seeds or arms) whose configuration in the sweep file is
    unchanged."""
    file_arms: tuple[str, ...] = ()
    """All arms in the order of the file. Empty if nothing is kept."""
    first_registered: dict[str, Any] | None = None
    """What was to decide when the sweep was first run (`Sweep.registered`), if it has been run."""

    @cached_property
    def profile(self) -> str:
        """The profile that all cells share."""
        return self.sweep.cells[0].config.profile

    @cached_property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.sweep.cells[0].config.machine.runs

    @property
    def name(self) -> str:
        """Returns the name of the plan's files."""
        return f"{self.sweep.axis}-{self.profile}"

    def file(self, suffix: str) -> Path:
        """Returns the path of one of the plan's files, which all nodes see."""
        return self.runs / "sweeps" / f"{self.name}{suffix}"

    def content(self) -> dict[str, Any]:
        """Returns what tables and MLflow know of the sweep: all its cells, also the kept ones."""
        # Seed by seed, so that a sweep that is cut short can still be compared.
        order = self.file_arms or tuple(self.sweep.arms)
        all_cells = (*self.sweep.cells, *self.kept)
        cells = sorted(all_cells, key=lambda cell: (cell.seed, order.index(cell.arm)))
        listed = [{"arm": c.arm, "seed": c.seed, "fingerprint": c.fingerprint} for c in cells]
        planned_arms = {cell.arm for cell in cells}
        return {
            "axis": self.sweep.axis,
            "question": self.sweep.question,
            "baseline": self.sweep.baseline,
            "profile": self.profile,
            "registered": {
                "first": self.first_registered or self.sweep.registered,
                "now": self.sweep.registered,
            },
            "settings": list(self.sweep.settings),
            "arms": [arm for arm in order if arm in planned_arms],  # --only leaves some out
            "cells": listed,
        }

    def write(self) -> None:
        """Writes the plan, so that tables and later commands know of it."""
        self.file(".json").parent.mkdir(parents=True, exist_ok=True)
        content = self.content()
        write_json(self.file(".json"), content | {"sha256": digest(content)})


def make_plan(
    source: Path | Mapping[str, Any],
    *,
    profile: str | None = None,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> Plan:
    """Returns the plan of a sweep file, or of its content, under the choices of a command line.

    Its paths are absolute, and nothing is written. Raises UserError for whatever is wrong.
    """
    # 1. The cells that this command asks for.
    sweep = _absolute(load_sweep(source, profile=profile, seeds=seeds, only=only, settings=settings))
    plan = Plan(sweep)
    # 2. Those of earlier commands. The plan that they left names a cell by what identifies it.
    left = _left(plan)
    settings_left = left.get("settings", list(sweep.settings))  # older plans do not have them
    if settings_left != list(sweep.settings):
        raise UserError(
            f"{plan.file('.json')} is the plan of a sweep under --set {' '.join(settings_left)}, of the "
            f"same name as one under {' '.join(sweep.settings)}: use another machine.runs for one of them"
        )
    first = left["registered"]["first"] if "registered" in left else None
    plan = replace(plan, first_registered=first)
    earlier = {(cell["arm"], cell["seed"], cell["fingerprint"]) for cell in left["cells"]}
    earlier -= {(cell.arm, cell.seed, cell.fingerprint) for cell in sweep.cells}
    if not earlier:
        return plan
    # 3. They are kept if the file, read with all their seeds and arms, still has them.
    all_seeds = {cell.seed for cell in sweep.cells} | {seed for _, seed, _ in earlier}
    whole = _absolute(load_sweep(source, profile=profile, seeds=sorted(all_seeds), settings=settings))
    kept = [cell for cell in whole.cells if (cell.arm, cell.seed, cell.fingerprint) in earlier]
    return replace(plan, kept=tuple(kept), file_arms=tuple(whole.arms))


def _left(plan: Plan) -> dict[str, Any]:
    """Returns the content of the plan that an earlier command left, with no cells if there is none."""
    file = plan.file(".json")
    if not file.exists():
        return {"cells": []}  # this is the first command on the sweep
    content, wrong = read_plan(file)
    if content is None:
        advice = "remove it, the runs themselves are not touched"
        raise UserError(f"{file} is not a readable plan ({wrong or 'of another kind'}): {advice}")
    return content


def _absolute(sweep: Sweep) -> Sweep:
    cells = [replace(cell, config=with_absolute_paths(cell.config)) for cell in sweep.cells]
    return replace(sweep, cells=tuple(cells))


def with_absolute_paths(section: S) -> S:
    """Returns a config, or a section of one, with every path made absolute.

    Paths of a command are relative to its folder, but trials run in folders of their own.
    """
    changes: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Path):
            # Unlike Path.absolute, this takes ".." out, and unlike Path.resolve it keeps links.
            changes[name] = Path(os.path.abspath(value))  # noqa: PTH100
        elif isinstance(value, BaseModel):
            changes[name] = with_absolute_paths(value)
    return section.model_copy(update=changes)


def folder_of(cell: Cell) -> RunFolder:
    """Returns the folder of a cell's run."""
    return RunFolder(cell.run_path)


def in_order_of_execution(cells: Sequence[Cell], baseline: str) -> list[Cell]:
    """Returns the cells in the order in which they are trained.

    1. The baseline, because tables compare with it and a frozen teacher is one.
    2. For each encoder that a cell would train, one cell that trains it.
    3. Cells that need no teacher.
    4. Cells that share an encoder that is trained by then.
    5. Cells that need the finished baseline.
    """
    seen: set[tuple[Any, ...]] = set()  # encoders that an earlier cell trains

    def rank(cell: Cell) -> int:
        foresight = cell.config.foresight
        encoder = foresight.encoder
        if cell.arm == baseline:
            return 0
        if foresight.uses_encoder and encoder.weights is None:
            key = (foresight.teacher_seed, encoder.name, encoder.depth, encoder.epochs)
            if key in seen:
                return 3
            seen.add(key)
            return 1
        return 4 if foresight.trains_teacher else 2

    return sorted(cells, key=rank)  # stable; `rank` is called once per cell, in their order
