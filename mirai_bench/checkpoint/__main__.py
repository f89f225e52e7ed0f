"""TODO: checkpoint.__main__."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mirai_bench.checkpoint.official import export_official, import_official
from mirai_bench.config.load import load_run
from mirai_bench.utils.cli import run, say


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.checkpoint",
        description="Reads and writes the checkpoint files of LlamaGen and Mirai.",
        epilog="examples: python -m mirai_bench.checkpoint import c2i_B_256.pt imagenet256_b imported/c2i_B_256; "
        "python -m mirai_bench.checkpoint export runs/0123456789ab out.pt --weights ema",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="the newest checkpoint of a run → an official file")
    export.add_argument("run", type=Path, help="a run folder")
    export.add_argument("out", type=Path)
    export.add_argument(
        "--weights",
        choices=("raw", "ema"),
        default="raw",
        help="what stands under `model` (ema: without projectors)",
    )
    load = actions.add_parser(
        "import", help="an official file → a run folder that can be sampled and evaluated"
    )
    load.add_argument("file", type=Path)
    load.add_argument("config", type=Path, help="a run file, a run's config.json, or the name of a profile")
    load.add_argument("out", type=Path, help="a new folder")
    load.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="settings")
    args = parser.parse_args(argv)
    if args.action == "import":
        print(import_official(args.file, load_run(args.config, args.settings), args.out))
        return 0
    content = export_official(args.run, args.out, args.weights)
    say(
        f"step {content['steps']}: {len(content['model'])} tensors under `model`, {len(content['ema'])} under `ema`"
    )
    print(args.out)
    return 0


if __name__ == "__main__":
    from mirai_bench.checkpoint.__main__ import command

    sys.exit(run(command))
