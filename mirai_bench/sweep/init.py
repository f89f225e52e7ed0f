"""The command `python -m mirai_bench.sweep.init`: a commented file to begin with."""

from __future__ import annotations

import argparse
import shlex
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
        epilog="examples:\n  python -m mirai_bench.sweep.init sweep my_sweep.yaml\n"
        "  python -m mirai_bench.sweep.init profile my_images.yaml --images FOLDER",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    images = "of a profile: the folder of your own images, class/image, that it is for"
    result.add_argument("--images", type=Path, metavar="FOLDER", help=images)
    result.add_argument("kind", choices=tuple(KINDS), help="what to write")
    checked = output_file(".yaml", ".yml")
    result.add_argument("file", type=checked, metavar="FILE.yaml", help="where to write it")
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints the command, or the commands, that read the file."""
    args = parser().parse_args(argv)
    path: Path = args.file
    if path.exists():
        raise UserError(f"{path} is there already: write another name, or remove it")
    commands = [KINDS[args.kind].format(path=shlex.quote(str(path)))]
    if args.images is not None:
        if args.kind != "profile":
            raise UserError(f"--images {args.images} with {args.kind}: write init profile {path}")
        from mirai_bench.sweep.own_profile import own_profile  # which imports NumPy

        text, commands = own_profile(args.images, path)
    else:
        text = template(args.kind)
    write_text(path, with_schema(text, args.kind))
    print("\n".join(commands))
    return 0


def template(kind: str) -> str:
    """Returns the text of a template that ships with the project."""
    return (SWEEPS / "templates" / f"{kind}.yaml").read_text(encoding="utf-8")


def with_schema(text: str, kind: str) -> str:
    """Returns the text with the place of the schema that editors read."""
    schema = (SWEEPS / "schema" / f"{kind}.schema.json").as_posix()
    return text.replace(f"../schema/{kind}.schema.json", schema)


if __name__ == "__main__":
    sys.exit(run(command))
