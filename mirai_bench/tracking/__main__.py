"""The command `python -m mirai_bench.tracking`: sends runs to MLflow that it does not have."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mirai_bench.tracking.mlflow_store import create_store, redact_credentials, store_uri
from mirai_bench.tracking.records import read_plans
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.ship import end_sweep, ship, start_sweep
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown

ACTIONS = ("replay",)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.tracking",
        description="Sends to MLflow what it does not have yet of these runs, without duplicates.",
        epilog="example: python -m mirai_bench.tracking replay runs/3f2a9c01b7de",
    )
    result.add_argument("action", metavar="replay", help="the only action")
    result.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    return result


def replay(folder: RunFolder) -> int:
    """Sends a run under every plan of its folder of runs that has it, or else on its own.

    Returns the number of MLflow runs that now hold it. Raises UserError if MLflow did not take it.
    """
    seed = folder.config_fields()["seed"]
    # 1. The sweeps that the run belongs to: (parent run, axis, arm).
    targets: list[tuple[str | None, str | None, str]] = []
    for plan in plans_of(folder):
        arms = [cell["arm"] for cell in plan["cells"] if cell["fingerprint"] == folder.path.name]
        targets += [(start_sweep(plan), plan["axis"], arm) for arm in arms]
    # 2. The run, once per sweep, because an MLflow run has one parent.
    for parent, axis, arm in targets or [(None, None, "")]:
        if not ship(folder, parent=parent, axis=axis, arm=arm, seed=seed):
            raise UserError(
                f"MLflow at {redact_credentials(store_uri())} did not take {folder}: start the "
                "server and run this command again"
            )
    return max(1, len(targets))


def plans_of(folder: RunFolder) -> list[dict[str, Any]]:
    """Returns the plans that have this run."""
    plans = read_plans(folder.path.parent)
    return [plan for plan in plans if folder.path.name in (cell["fingerprint"] for cell in plan["cells"])]


def end_ended(folder: RunFolder) -> None:
    """Marks the sweeps of a run that was sent as ended, if none of their runs waits to be trained."""
    for plan in plans_of(folder):
        folders = [RunFolder(folder.path.parent / cell["fingerprint"]) for cell in plan["cells"]]
        states = {each.state for each in folders}
        if states <= {"done", "failed"}:
            end_sweep(start_sweep(plan), failed="failed" in states)


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints a line per run."""
    args = parser().parse_args(argv)
    if args.action not in ACTIONS:
        raise unknown("action", args.action, ACTIONS)
    for path in args.runs:  # all of them, before the first is sent
        RunFolder(path).check()
    create_store()
    for path in args.runs:
        # Absolute, because the name of the folder is the fingerprint, which `.` would hide.
        print(f"{path}: in {replay(RunFolder(path.absolute()))} MLflow run(s)")
    for path in args.runs:
        end_ended(RunFolder(path.absolute()))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
