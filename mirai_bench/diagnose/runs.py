"""The runs that a command line names: one run, or those of a sweep that have ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirai_bench.config.sweep_file import find_sweep, load_sweep
from mirai_bench.tracking.records import read_plans
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError, unknown

log = logging.getLogger(__name__)


def runs_of(
    what: Path,
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    profile: str | None = None,
    settings: Sequence[str] = (),
) -> list[RunFolder]:
    """Returns the folders of the runs that `what` names: the folder of a run, or a sweep file.

    Of a sweep these are its finished runs that have weights, with whatever seeds it was trained; a message
    says how many have none. The other arguments choose among them. Raises UserError if there is no such
    run, and if a choice is made of a run that is no sweep.
    """
    if what.is_dir():
        if arms or seeds or profile or settings:
            raise UserError(
                f"{what} is a run: --arms, --seeds, --profile and --set choose among those of a sweep"
            )
        return [RunFolder(what)]
    # 1. The cells that were planned. The first configuration names the profile and the folder of runs.
    sweep = load_sweep(find_sweep(str(what)), profile=profile, settings=settings)
    config = sweep.cells[0].config
    runs = config.machine.runs
    cells = planned(runs, sweep.axis, config.profile)
    if not cells:
        raise UserError(f"{runs}: {sweep.axis} ({config.profile}) was not trained here; train it first")
    for arm in arms:
        if arm not in sweep.arms:
            raise unknown("arm", arm, sweep.arms)
    # 2. Those that are asked for, have ended and have weights.
    wanted = [cell for cell in cells if not arms or cell["arm"] in arms]
    wanted = [cell for cell in wanted if not seeds or cell["seed"] in seeds]
    folders = [RunFolder(runs / cell["fingerprint"]) for cell in wanted]
    finished = [folder for folder in folders if folder.is_done]
    found = [folder for folder in finished if folder.has_weights]
    if not found:
        raise UserError(
            f"{runs}: none of {len(wanted)} runs of {sweep.axis} has ended and has weights; train them first"
        )
    if len(found) < len(wanted):
        unfinished = len(wanted) - len(finished)
        bare = len(finished) - len(found)
        lacking = f"{unfinished} have not ended, {bare} have no weights (they were taken from records)"
        log.info(f"{unfinished + bare} of {len(wanted)} runs are left out: {lacking}")
    return found


def planned(runs: Path, axis: str, profile: str) -> list[dict[str, Any]]:
    """Returns the cells {arm, seed, fingerprint} of a sweep that was started in this folder of runs."""
    plans = [plan for plan in read_plans(runs) if (plan["axis"], plan["profile"]) == (axis, profile)]
    return [cell for plan in plans for cell in plan["cells"]]


def baseline_of(folder: RunFolder) -> RunFolder | None:
    """Returns the finished baseline of the same sweep and seed with weights, or None if there is none.

    The baseline itself has none. Of a run of several sweeps the first one counts.
    """
    runs = folder.path.absolute().parent
    for plan in read_plans(runs):
        arms = {(cell["arm"], cell["seed"]): cell["fingerprint"] for cell in plan["cells"]}
        seeds = [seed for (_, seed), fingerprint in arms.items() if fingerprint == folder.path.name]
        for seed in seeds:
            found = RunFolder(runs / arms.get((plan["baseline"], seed), folder.path.name))
            if found.path.name != folder.path.name and found.is_done and found.has_weights:
                return found
    return None
