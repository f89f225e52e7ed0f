"""The command `python -m mirai_bench.sweep.init`: a commented file to begin with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mirai_bench.config.load import SWEEPS
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_text
from mirai_bench.utils.outputs import output_file

# What can be written, and the command that reads it.
KINDS = {
    "sweep": "mirai-bench sweep {path} --dry-run",
    "profile": "mirai-bench train {path} --dry-run",
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.sweep.init",
        description="Writes a commented sweep or profile file to begin with.",
        epilog="example: python -m mirai_bench.sweep.init sweep my_sweep.yaml",
    )
    result.add_argument("kind", choices=KINDS, help="what to write")
    checked = output_file(".yaml", ".yml")
    result.add_argument("file", type=checked, metavar="FILE.yaml", help="where to write it")
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints the command that reads the file."""
    args = parser().parse_args(argv)
    path: Path = args.file
    if path.exists():
        raise UserError(f"{path} is there already: write another name, or remove it")
    text = (SWEEPS / "templates" / f"{args.kind}.yaml").read_text(encoding="utf-8")
    schema = (SWEEPS / "schema" / f"{args.kind}.schema.json").as_posix()
    write_text(path, text.replace(f"../schema/{args.kind}.schema.json", schema))
    print(KINDS[args.kind].format(path=path))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
