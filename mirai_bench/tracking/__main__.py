"""TODO: tracking.__main__."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mirai_bench.tracking.mlflow_store import create_store, shown, store_uri
from mirai_bench.tracking.records import read_plans
from mirai_bench.tracking.ship import ship, start_sweep
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown


def _replay(run_dir: Path) -> int:
    """Under every plan beside the run that has it, else as a run of its own. → number of MLflow runs that now hold it."""
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    cells = []
    for plan in read_plans(run_dir.parent):
        mine = [cell for cell in plan["cells"] if cell["fingerprint"] == run_dir.name]
        cells += [(start_sweep(plan), plan["axis"], cell["arm"]) for cell in mine]
    for parent, axis, arm in cells or [(None, None, "")]:
        if not ship(run_dir, parent=parent, axis=axis, arm=arm, seed=config["seed"]):
            raise UserError(
                f"MLflow at {shown(store_uri())} did not take {run_dir}: start the server and run this command again"
            )
    return max(1, len(cells))


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.tracking",
        description="Sends to MLflow what it does not have yet of these runs, without duplicates.",
        epilog="example: python -m mirai_bench.tracking replay runs/3f2a9c01b7de",
    )
    parser.add_argument("action", help="replay")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    args = parser.parse_args(argv)
    if args.action != "replay":
        raise unknown("action", args.action, ["replay"])
    for run_dir in args.runs:
        if not (run_dir / "config.json").is_file():
            raise UserError(
                f"{str(run_dir)!r} is not a run folder (it has no config.json): write for instance runs/3f2a9c01b7de"
            )
    create_store()
    for run_dir in args.runs:
        print(f"{run_dir}: in {_replay(run_dir.absolute())} MLflow run(s)")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
