"""TODO: train.__main__."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mirai_bench.config.load import load_run
from mirai_bench.tracking.run_folder import RunFailed
from mirai_bench.train.run import train
from mirai_bench.train.trainer import run_dir_of
from mirai_bench.utils.cli import run, say
from mirai_bench.utils.device import resolve_device
from mirai_bench.utils.distributed import process_group, rank_and_world


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.train",
        description="Trains one run; the same command again resumes it.",
        epilog="examples: python -m mirai_bench.train digits --set foresight.level=internal --set train.epochs=2; "
        "torchrun --nproc-per-node 8 -m mirai_bench.train imagenet256_b",
    )
    parser.add_argument(
        "config", type=Path, help="a run file (YAML), a run's config.json, or the name of a profile"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and what it costs, train nothing"
    )
    parser.add_argument(
        "--measure", action="store_true", help="with --dry-run: time a training step here, on random codes"
    )
    args = parser.parse_args(argv)
    config = load_run(args.config, args.settings)
    if args.dry_run:
        from mirai_bench.train.dry_run import describe

        print(describe(config, args.measure), end="")
        return 0
    run_dir = run_dir_of(config)
    with process_group(resolve_device(config)):
        try:
            train(config, run_dir)
        except RunFailed as error:
            say(f"failed: {error}")
            return 1
        if rank_and_world()[0] == 0:
            print(run_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
