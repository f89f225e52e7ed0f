"""Sends to MLflow what it does not have yet of runs, outside of the sweep that trained them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mirai_bench.tracking.mlflow_store import create_store
from mirai_bench.tracking.records import read_plans
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.ship import end_sweep, ship, start_sweep
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)


def is_usable() -> bool:
    """Tells whether there is a store to send to, which is created if need be. If not, a warning says why."""
    try:
        create_store()
    except UserError as error:
        log.warning(f"nothing is sent to MLflow: {error}")
        return False
    return True


def replay(folder: RunFolder) -> int:
    """Sends a run under every plan of its folder of runs that has it, or else on its own.

    Returns the number of MLflow runs that now hold it, or 0, after one warning, if MLflow is away.
    """
    folder = absolute(folder)
    seed = folder.config_fields()["seed"]
    # 1. The sweeps that the run belongs to: (parent run, axis, arm).
    targets: list[tuple[str | None, str | None, str]] = []
    targets += [(start_sweep(plan), plan["axis"], cell["arm"]) for plan, cell in cells_of(folder)]
    # 2. The run, once per sweep, because an MLflow run has one parent.
    for parent, axis, arm in targets or [(None, None, "")]:
        if not ship(folder, parent=parent, axis=axis, arm=arm, seed=seed):
            return 0
    return max(1, len(targets))


def end_ended(folders: Iterable[RunFolder]) -> None:
    """Marks the sweeps of runs that were sent as ended, if none of their runs waits to be trained."""
    plans: dict[tuple[Path, str, str], dict[str, Any]] = {}
    for folder in map(absolute, folders):
        for plan in plans_of(folder):
            plans[folder.path.parent, plan["axis"], plan["profile"]] = plan
    for (runs, _, _), plan in plans.items():
        states = {RunFolder(runs / cell["fingerprint"]).state for cell in plan["cells"]}
        if states <= {"done", "failed"}:
            end_sweep(start_sweep(plan), failed="failed" in states)


def plans_of(folder: RunFolder) -> list[dict[str, Any]]:
    """Returns the plans that have this run."""
    plans = read_plans(folder.path.parent)
    return [plan for plan in plans if folder.path.name in (cell["fingerprint"] for cell in plan["cells"])]


def cells_of(folder: RunFolder) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns (plan, cell) for each cell of a plan that is this run."""
    pairs = [(plan, cell) for plan in plans_of(folder) for cell in plan["cells"]]
    return [(plan, cell) for plan, cell in pairs if cell["fingerprint"] == folder.path.name]


def absolute(folder: RunFolder) -> RunFolder:
    """Returns the folder by its absolute path: its name is the fingerprint, which `.` would hide."""
    return RunFolder(folder.path.absolute())
