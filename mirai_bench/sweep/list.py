"""The command `python -m mirai_bench.sweep.list`: everything that a file can name."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mirai_bench.config.checking import checked
from mirai_bench.config.load import SWEEPS, load_run
from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.sweep_file import SweepFile, find_sweep
from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.utils.cli import add_import, run
from mirai_bench.utils.text_table import console_table

Entries = dict[str, str]  # what there is, and a line about each


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.sweep.list",
        description="Lists the sweeps, profiles, protocols, extractors, encoders, regularizers and "
        "diagnostics that there are, or the arms of a sweep.",
        epilog="example: python -m mirai_bench.sweep.list injection_level",
    )
    result.add_argument("sweep", nargs="?", metavar="SWEEP", help="a sweep: lists its arms")
    add_import(result)
    result.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints the lists."""
    args = parser().parse_args(argv)
    found = {"arms": arms_of(args.sweep)} if args.sweep else everything()
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    for title, entries in found.items():
        print(console_table([title, ""], [[name, text] for name, text in entries.items()]), end="\n\n")
    return 0


def arms_of(name: str) -> Entries:
    """Returns the arms of a sweep, with the fields that each of them sets."""
    path = find_sweep(name)
    file = checked(SweepFile, read_yaml(path), str(path))
    return {arm: flow(fields) for arm, fields in file.arms.items()}


def flow(fields: dict[str, Any]) -> str:
    """Writes fields in one line."""
    return ", ".join(f"{key}: {value}" for key, value in fields.items())


def everything() -> dict[str, Entries]:
    """Returns all lists, by their titles."""
    # Imported here, because they import torch.
    from mirai_bench.diagnose.registry import DIAGNOSTICS
    from mirai_bench.evaluate.extractors import EXTRACTORS
    from mirai_bench.foresight.encoders.zoo import PIXEL_ENTRIES
    from mirai_bench.regularizer.registry import REGULARIZERS

    profiles = sorted(path.stem for path in (SWEEPS / "profiles").glob("*.yaml"))
    encoders = {name: f"timm's {entry.timm}" for name, entry in PIXEL_ENTRIES.items()}
    return {
        "sweep": {path.stem: question_of(path) for path in sorted(SWEEPS.glob("*.yaml"))},
        "profile": {name: profile_line(name) for name in profiles},
        "protocol": {name: flow(fields) for name, fields in PROTOCOLS.items()},
        "extractor": {
            name: f"measures {entry.frechet}, {entry.kernel}" for name, entry in EXTRACTORS.items()
        },
        "encoder": {"masked_tokens": "a small transformer that is trained here, once"} | encoders,
        "regularizer": {name: first_line(entry) for name, entry in REGULARIZERS.items() if name != "none"},
        "diagnostic": {name: entry.question for name, entry in DIAGNOSTICS.items()},
    }


def question_of(path: Path) -> str:
    """Returns what a sweep asks."""
    return checked(SweepFile, read_yaml(path), str(path)).question


def profile_line(name: str) -> str:
    """Says what a profile is: its data, its model and its length."""
    config = load_run(name)
    data = config.data.name if config.data.dataset == "folder" else config.data.dataset
    rows, columns = config.grid
    model = f"{rows}x{columns} tokens, {config.model.depth} blocks x {config.model.width}"
    return f"{data}, {model}, {config.train.epochs} epochs, recipe {config.train.recipe}"


def first_line(entry: object) -> str:
    """Returns the first line of the docstring of an entry of a registry."""
    return (entry.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(run(command))
