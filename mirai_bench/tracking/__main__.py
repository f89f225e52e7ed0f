"""The command `python -m mirai_bench.tracking`: sends runs to MLflow that it does not have."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mirai_bench.tracking.run_folder import RunFolder
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
    """Sends a run under every plan of its folder of runs that has it, or else as a run of its own.

    Returns the number of MLflow runs that now hold it. Raises UserError if MLflow did not take it.
    """
    # Imported here, so that --help is fast.
    from mirai_bench.tracking.mlflow_store import redact_credentials, store_uri
    from mirai_bench.tracking.records import read_plans
    from mirai_bench.tracking.ship import ship, start_sweep

    targets: list[tuple[str | None, str | None, str]] = []  # (parent run, axis, arm)
    for plan in read_plans(folder.path.parent):
        for cell in plan["cells"]:
            if cell["fingerprint"] == folder.path.name:
                targets.append((start_sweep(plan), plan["axis"], cell["arm"]))
    if not targets:
        targets.append((None, None, ""))
    seed = folder.config_fields()["seed"]
    for parent, axis, arm in targets:
        if not ship(folder, parent=parent, axis=axis, arm=arm, seed=seed):
            raise UserError(
                f"MLflow at {redact_credentials(store_uri())} did not take {folder}: start the server and run this "
                "command again"
            )
    return len(targets)


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints a line per run."""
    args = parser().parse_args(argv)
    if args.action not in ACTIONS:
        raise unknown("action", args.action, ACTIONS)
    for path in args.runs:
        RunFolder(path).check()
    from mirai_bench.tracking.mlflow_store import create_store

    create_store()
    for path in args.runs:
        print(f"{path}: in {replay(RunFolder(path.absolute()))} MLflow run(s)")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
