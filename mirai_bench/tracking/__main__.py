"""The command `python -m mirai_bench.tracking`: sends runs to MLflow that it does not have."""

from __future__ import annotations

import argparse
import sys

from mirai_bench.tracking.mlflow_store import create_store, redact_credentials, store_uri
from mirai_bench.tracking.named_runs import run_path
from mirai_bench.tracking.replay import end_ended, replay
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
    named = "the folder of a run, or AXIS/ARM/SEED of a sweep"
    result.add_argument("runs", nargs="+", type=run_path, metavar="RUN", help=named)
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints a line per run."""
    args = parser().parse_args(argv)
    if args.action not in ACTIONS:
        raise unknown("action", args.action, ACTIONS)
    for path in args.runs:  # all of them, before the first is sent
        RunFolder(path).check()
    create_store()
    for path in args.runs:
        sent = replay(RunFolder(path))
        if not sent:
            raise UserError(
                f"MLflow at {redact_credentials(store_uri())} did not take {path}: start the server and run "
                "this command again"
            )
        print(f"{path}: in {sent} MLflow run(s)")
    end_ended(map(RunFolder, args.runs))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
