"""The command `python -m mirai_bench.tracking`: sends runs to MLflow, or writes them for TensorBoard."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mirai_bench.tracking.mlflow_store import create_store, redact_credentials, store_uri
from mirai_bench.tracking.named_runs import run_path
from mirai_bench.tracking.replay import end_ended, replay
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.outputs import output_folder

ACTIONS = ("replay", "tensorboard")
OUT = Path("tensorboard")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.tracking",
        description="`replay` sends to MLflow what it does not have yet of these runs, without duplicates. "
        "`tensorboard` writes them as event files, which `wandb sync` reads, too.",
        epilog="examples:\n"
        "  python -m mirai_bench.tracking replay runs/3f2a9c01b7de\n"
        "  python -m mirai_bench.tracking tensorboard injection_level/internal-2d/10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("action", metavar="ACTION", help=" or ".join(ACTIONS))
    named = "the folder of a run, or AXIS/ARM/SEED of a sweep"
    result.add_argument("runs", nargs="+", type=run_path, metavar="RUN", help=named)
    written = f"tensorboard: the folder of the event files; default {OUT}"
    result.add_argument("--out", type=output_folder, metavar="FOLDER", help=written)
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints a line per run."""
    args = parser().parse_args(argv)
    if args.action not in ACTIONS:
        raise unknown("action", args.action, ACTIONS)
    if args.out is not None and args.action != "tensorboard":
        raise UserError("--out is the folder of `tensorboard`: leave it out of replay")
    for path in args.runs:  # all of them, before the first is sent
        RunFolder(path).check()
    if args.action == "tensorboard":
        from mirai_bench.tracking.tensorboard import export

        for path in args.runs:
            print(*export(RunFolder(path), args.out or OUT), sep="\n")
        return 0
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
