"""A run by its name, AXIS/ARM/SEED, instead of the folder that its fingerprint names."""

from __future__ import annotations

from pathlib import Path

from mirai_bench.tracking.records import read_plans
from mirai_bench.utils.errors import UserError, unknown

RUNS = Path("runs")  # where runs are, unless more stands before the name


def run_path(what: str) -> Path:
    """Returns the folder of a run, which is given as a path, or as [RUNS/]AXIS/ARM/SEED.

    A path that is there is taken as it is, and so is one that names no sweep. Raises UserError if the sweep
    has no such arm or seed, or if it was trained with several profiles.
    """
    path = Path(what)
    if path.exists() or len(path.parts) < 3:
        return path
    *above, axis, arm, seed = path.parts
    runs = Path(*above) if above else RUNS
    cells = [cell for plan in read_plans(runs) if plan["axis"] == axis for cell in plan["cells"]]
    if not cells:
        return path
    arms = dict.fromkeys(cell["arm"] for cell in cells)
    if arm not in arms:
        raise unknown(f"arm of {axis}", arm, arms)
    seeds = {str(cell["seed"]): cell["seed"] for cell in cells if cell["arm"] == arm}
    if seed not in seeds:
        raise unknown(f"seed of {axis}/{arm}", seed, seeds)
    found = {cell["fingerprint"] for cell in cells if (cell["arm"], str(cell["seed"])) == (arm, seed)}
    if len(found) > 1:
        folders = ", ".join(str(runs / fingerprint) for fingerprint in sorted(found))
        raise UserError(f"{what} was trained with several profiles: write one of {folders}")
    return runs / found.pop()
