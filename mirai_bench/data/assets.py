"""The command `python -m mirai_bench.data.assets`: the files that do not ship with the project."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mirai_bench.utils.assets import assets_folder
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.outside import OUTSIDE, Outside, download

OTHER = "ANOTHER FILE"  # what is said of a file whose hash is not the known one
EPILOG = """examples:
  python -m mirai_bench.data.assets                              lists them
  python -m mirai_bench.data.assets fetch vq16 --to ~/assets     downloads one
  python -m mirai_bench.data.assets verify                       compares what is there with its hash"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.data.assets",
        description="Lists the files that do not ship with the project: what uses each of them, where it is "
        "from, its hash, and whether it is there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "list (the default), fetch: download, verify: compare with the known hashes"
    result.add_argument("action", nargs="?", choices=("list", "fetch", "verify"), default="list", help=what)
    result.add_argument(
        "names", nargs="*", metavar="NAME", help="only these files, by their names in the list"
    )
    folder = "the folder of assets; default $MIRAI_BENCH_ASSETS"
    result.add_argument("--to", type=Path, metavar="FOLDER", help=folder)
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code: 1 if a file is not what it should be."""
    args = parser().parse_args(argv)
    for name in args.names:
        if name not in OUTSIDE:
            raise unknown("file", name, OUTSIDE)
    folder = assets_folder(args.to.expanduser() if args.to is not None else None)
    chosen = {name: asset for name, asset in OUTSIDE.items() if name in args.names or not args.names}
    if args.action == "list":
        print("\n\n".join(entry(name, asset, folder) for name, asset in chosen.items()))
        return 0
    if folder is None:
        raise UserError("there is no folder of assets: write --to FOLDER, or set $MIRAI_BENCH_ASSETS")
    return fetch(args.names, folder) if args.action == "fetch" else verify(chosen, folder)


def entry(name: str, asset: Outside, folder: Path | None) -> str:
    """Returns what the list says of a file."""
    state = "not there" if place(asset, folder) is None else f"in {folder}"
    facts = {"file": f"{asset.file} ({state})", "for": asset.used_by, "from": asset.origin}
    if asset.sha256 is not None:
        facts["sha256"] = asset.sha256.removeprefix("sha256:")
    return "\n".join([name, *(f"  {key:7}{text}" for key, text in facts.items())])


def place(asset: Outside, folder: Path | None) -> Path | None:
    """Returns the path of a file, or None if it is not there."""
    path = None if folder is None else folder / asset.file
    return path if path is not None and path.is_file() else None


def fetch(names: list[str], folder: Path) -> int:
    """Downloads the files that are not there. Prints the path of each one."""
    if not names:
        fetched = [name for name, asset in OUTSIDE.items() if asset.url is not None]
        raise UserError(f"fetch takes the names of files: {', '.join(fetched)}")
    for name in names:
        asset = OUTSIDE[name]
        path = place(asset, folder) or download(asset, folder)
        print(f"{path}: {verdict(asset, path)}")
    return 0


def verify(chosen: dict[str, Outside], folder: Path) -> int:
    """Compares the files that are there with their hashes. Prints a line for each; 1 if one differs."""
    wrong = 0
    for asset in chosen.values():
        path = place(asset, folder)
        if path is not None:
            found = verdict(asset, path)
            wrong += found.startswith(OTHER)
            print(f"{path}: {found}")
    return 1 if wrong else 0


def verdict(asset: Outside, path: Path) -> str:
    """Returns in words whether a file is the one that it should be."""
    found = file_sha256(path)
    known = asset.sha256
    if asset.tensors is not None:
        from mirai_bench.data.images.vgg16 import read_weights, weights_sha256  # which import torch

        found = weights_sha256(read_weights(path))
        known = asset.tensors
    if known is None:
        return f"its content is {found}; which one it should be is not known here"
    return "verified" if found == known else f"{OTHER}, its content is {found}"


if __name__ == "__main__":
    sys.exit(run(command))
