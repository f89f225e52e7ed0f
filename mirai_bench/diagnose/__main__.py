"""The command `python -m mirai_bench.diagnose`: why does an arm help?"""

from __future__ import annotations

import argparse
import logging
import sys

from mirai_bench.tracking.named_runs import run_path
from mirai_bench.utils.cli import Numbers, add_device, add_settings, run
from mirai_bench.utils.errors import unknown

log = logging.getLogger("mirai_bench.diagnose")  # __name__ is "__main__" here


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.diagnose",
        description="Looks into the weights of finished runs, and writes what it finds beside them. What "
        "was measured before is not measured again. analysis/diagnose.py draws what was found.",
        epilog="example: python -m mirai_bench.diagnose sweeps/injection_level.yaml --only spatial gradients",
    )
    add = result.add_argument
    what = "a run folder, AXIS/ARM/SEED of a sweep, or a sweep file: its finished runs"
    add("what", type=run_path, metavar="RUN|SWEEP.yaml", help=what)
    add("--only", nargs="+", default=[], metavar="NAME", help="only these diagnostics")
    epochs = "only the weights of these epochs; default all that were kept, and the newest"
    add("--at", nargs="+", type=float, default=[], metavar="EPOCH", help=epochs)
    add("--arms", nargs="+", default=[], metavar="ARM", help="of a sweep: only these arms")
    only = "of a sweep: only these seeds"
    add("--seeds", nargs="+", action=Numbers, default=[], metavar="N", help=only)
    add("--profile", metavar="NAME", help="of a sweep: this profile instead of the file's")
    add("--full", action="store_true", help="the whole foresight map, and t-SNE")
    add_settings(result, "machine.runs=/data/runs")
    add_device(result)
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code."""
    args = parser().parse_args(argv)
    # Imported here, so that --help needs no torch.
    import torch

    from mirai_bench.diagnose.registry import DIAGNOSTICS
    from mirai_bench.diagnose.run import Choice, diagnose_runs
    from mirai_bench.diagnose.runs import runs_of
    from mirai_bench.utils.device import resolve_device

    for name in args.only:
        if name not in DIAGNOSTICS:
            raise unknown("diagnostic", name, DIAGNOSTICS)
    names = [name for name in DIAGNOSTICS if name in args.only or not args.only]
    device = resolve_device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    chosen = {"arms": args.arms, "seeds": args.seeds, "profile": args.profile, "settings": args.settings}
    folders = runs_of(args.what, **chosen)
    for line in diagnose_runs(folders, Choice(names, args.at, args.full, device)).lines():
        log.info(line)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
