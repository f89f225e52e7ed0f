"""The command `python -m mirai_bench.train`: trains one run."""

from __future__ import annotations

import argparse
import logging
import sys

from mirai_bench.config.load import load_run
from mirai_bench.utils.cli import add_config, run

log = logging.getLogger("mirai_bench.train")  # __name__ is "__main__" here

EPILOG = """examples:
  python -m mirai_bench.train digits --set train.epochs=2
  python -m mirai_bench.train digits --set foresight.level=internal --dry-run
  torchrun --nproc-per-node 8 -m mirai_bench.train imagenet256_b"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.train",
        description="Trains one run. The same command again resumes it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(result)
    shown = "print the resolved config and what it costs, train nothing"
    result.add_argument("--dry-run", action="store_true", help=shown)
    timed = "with --dry-run: time a training step here, on random codes"
    result.add_argument("--measure", action="store_true", help=timed)
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints the path of the run's folder."""
    args = parser().parse_args(argv)
    config = load_run(args.config, args.settings)
    # Imported here, so that --help and wrong configs need no torch.
    from mirai_bench.tracking.failure import RunFailed
    from mirai_bench.tracking.run_folder import RunFolder
    from mirai_bench.train.dry_run import describe
    from mirai_bench.train.run import train
    from mirai_bench.train.trainer import resolve_hardware
    from mirai_bench.utils.distributed import process_group, rank_and_world

    hardware = resolve_hardware(config)
    if args.dry_run:
        print(describe(config, hardware, args.measure), end="")
        return 0
    folder = RunFolder(config.run_path)
    # The group of torchrun's processes. A process on its own has none.
    with process_group(hardware.device):
        try:
            train(config, folder, hardware)
        except RunFailed as error:
            log.info(f"failed: {error}")
            return 1
        if rank_and_world()[0] == 0:  # one line, however many processes there are
            print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
