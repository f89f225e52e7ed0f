"""The command `python -m mirai_bench.benchmark`, with one form per measurement."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mirai_bench.config.model_config import MODEL_SIZES
from mirai_bench.utils.cli import add_device, add_settings, run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.outputs import output_file, output_folder

log = logging.getLogger(__name__)

Add = Callable[..., object]  # `add_argument` of a parser

# Relative. Float32 through a dozen blocks leaves 1e-5, and a wrong pairing or offset 1e-3 or more.
TOLERANCE = 1e-4
SIZES = "small, medium, B, L or XL"
# Options of all measurements. The others are arguments of the measurement's own function.
SHARED = ("kind", "device", "rounds", "threads", "compile", "peer", "seconds", "out", "plugins")
EPILOG = """examples:
  python -m mirai_bench.benchmark train --sizes small --peer ../Mirai --out train_cpu.json
  python -m mirai_bench.benchmark parity --peer ../Mirai --size nano --grid 8
  python -m mirai_bench.benchmark targets --peer ../Mirai --peer ../LlamaGen --out reports/benchmarks"""


# ---- the command line


def _add_train(add: Add) -> None:
    precisions = ("fp32", "bf16", "auto")
    add("--sizes", nargs="+", help=f"{SIZES}; default small medium, on a GPU B L")
    add("--arms", nargs="+", help="arms of foresight; default ntp mirai-e-k3, on a GPU all")
    add("--precisions", nargs="+", choices=precisions, help="default fp32 auto, on a GPU bf16")
    add("--batch-size", type=int, help="global batch size, instead of the size's own")
    parts = "parts in which our steps compute the batch, to save memory; default 1"
    add("--micro-batches", type=int, default=1, help=parts)


def _add_sample(add: Add) -> None:
    add("--sizes", nargs="+", help=f"{SIZES}; default small, on a GPU B")
    add("--batch-sizes", nargs="+", type=int, help="default 1 8 32, on a GPU 16 64 256 1024")
    add("--cfg-scales", nargs="+", type=float, default=[1.0, 2.0], help="guidance; default 1 2")


def _add_evaluate(add: Add) -> None:
    add("--config", default="digits", help="a run file or the name of a profile; default digits")
    add("--statistics", type=int, default=5000, help="features of the statistics; default 5000")
    whole = "samples of an evaluation at size B, of random weights; default none, on a GPU 50000"
    add("--untrained", type=int, help=whole)
    # The peak memory is read for each of these numbers of images. Their difference is what grows.
    images = [5000, 50_000]
    add("--memory", type=int, nargs="*", default=images, help="images; default 5000 50000")


def _add_data(add: Add) -> None:
    add("--images", type=int, default=8192, help="number of images that are written; default 8192")


def _add_sweep(add: Add) -> None:
    add("file", type=Path, nargs="?", help="sweep file; default that of the injection level")
    add("--only", nargs="+", default=[], metavar="ARM", help="default all arms of the file")
    add("--seeds", nargs="+", type=int, default=[0, 1], help="default 0 1")


def _add_parity(add: Add) -> None:
    add("--peer", type=Path, required=True, help="folder of the checkout, whose code is run")
    add("--size", choices=list(MODEL_SIZES), default="B", help="model size; default B")
    add("--grid", type=int, default=16, help="tokens per side; default 16, as in Mirai's offsets")
    add("--vocabulary", type=int, default=16384, help="number of codes; default 16384")
    add("--classes", type=int, default=1000, help="number of classes; default 1000")
    add("--images", type=int, default=2, help="number of images; default 2")
    add("--k", type=int, default=9, help="number of foresight heads; default 9")
    add("--cfg-scale", type=float, default=2.0, help="scale of guidance; default 2")
    add("--seed", type=int, default=0, help="seed of weights and inputs; default 0")
    add("--tolerance", type=float, default=TOLERANCE, help="relative; default 1e-4, else exit code 1")
    add("--out", type=output_folder, help="folder for parity_<peer>.json and .md")


def _add_shared(add: Add, out: Callable[[str], Path]) -> None:
    compile = argparse.BooleanOptionalAction
    add("--rounds", type=int, default=9, help="rounds that count, after two that do not; default 9")
    add("--threads", type=int, default=2, help="number of CPU threads; default 2")
    add("--compile", action=compile, help="compile the training steps; by default on a GPU")
    add(
        "--peer",
        type=Path,
        action="append",
        default=[],
        help="checkout of Mirai or LlamaGen, whose code is run",
    )
    add("--seconds", type=float, default=math.inf, help="begin nothing after so many seconds")
    add("--out", type=out, help="JSON file to write, or to go on with; for `targets` a folder")


# What adds the options of each measurement, and what --help says of it.
MEASUREMENTS: dict[str, tuple[Callable[[Add], None], str]] = {
    "train": (_add_train, "measures a training step and its parts, by size, arm and precision"),
    "sample": (_add_sample, "measures sampling, by batch size and guidance"),
    "evaluate": (_add_evaluate, "measures one evaluation, extractors, statistics and peak memory"),
    "data": (_add_data, "measures random access to codes, also with one file per image"),
    "sweep": (_add_sweep, "measures where the wall-clock time of a sweep goes"),
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.benchmark",
        description="Measures speed and memory. With --peer, which may be given twice, the steps of the "
        "official code alternate with ours on the same work. Only ratios are comparable between machines.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    for kind, (add_options, what) in MEASUREMENTS.items():
        sub = commands.add_parser(kind, help=what)
        _add_shared(sub.add_argument, output_file(".json", makes_folder=True))
        add_options(sub.add_argument)
        add_device(sub)
        if kind in ("evaluate", "sweep"):
            add_settings(sub)
    sub = commands.add_parser("targets", help="measures all that the targets need here")
    _add_shared(sub.add_argument, output_folder)
    add_device(sub)
    sub = commands.add_parser("report", help="writes tables and chart of a folder of JSON files")
    sub.add_argument("folder", type=Path, help="the folder, such as reports/benchmarks")
    sub = commands.add_parser("parity", help="compares what both codes compute, in float32")
    _add_parity(sub.add_argument)
    add_device(sub)
    return result


# ---- what the commands do


def measure(args: argparse.Namespace) -> None:
    """Runs one measurement, prints its table, and writes its JSON file row by row.

    Rows that the file has from this machine and code are kept, and those that were asked for again are not
    measured again.
    """
    # Imported here, so that --help needs no torch.
    from mirai_bench.benchmark import data, evaluate, report, sample, sweep, train
    from mirai_bench.benchmark.options import Options
    from mirai_bench.utils.files import write_json

    modules: dict[str, Any] = {
        "train": train,
        "sample": sample,
        "evaluate": evaluate,
        "data": data,
        "sweep": sweep,
    }
    options = Options.resolve(
        args.device, args.rounds, args.threads, args.compile, args.peer, args.seconds
    ).resume(args.out)
    head = options.head()
    own = {name: value for name, value in vars(args).items() if name not in SHARED}
    rows = []
    for row in modules[args.kind].measure(options, **own):
        rows.append(row | {"device": options.device.type})
        # At once, because what comes next may be killed.
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.out, head | {"rows": options.with_earlier(rows)})
    print(report.table(rows), end="")


def measure_targets(args: argparse.Namespace) -> None:
    """Runs every measurement of PLAN for this device, and writes the report of the folder.

    Without such a device nothing is measured, and the report says so.
    """
    import torch

    from mirai_bench.benchmark.report import write_report
    from mirai_bench.benchmark.targets import PLAN
    from mirai_bench.utils.device import resolve_device

    if args.out is None:
        advice = "give --out a folder, for instance reports/benchmarks"
        raise UserError(f"targets writes several files: {advice}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        log.info("not measured: no CUDA device is visible")
    else:
        device = resolve_device(args.device).type
        shared = [f"--device={args.device}", f"--threads={args.threads}", f"--rounds={args.rounds}"]
        shared += [f"--peer={path}" for path in args.peer]
        if args.compile is not None:
            shared.append("--compile" if args.compile else "--no-compile")
        end = time.monotonic() + args.seconds
        for kind, *words in PLAN[device]:
            log.info(f"{kind} {' '.join(words)}")
            out = args.out / f"{kind}_{device}.json"
            left = f"--seconds={end - time.monotonic()}"
            measure(parser().parse_args([kind, *shared, left, *words, f"--out={out}"]))
    args.out.mkdir(parents=True, exist_ok=True)
    print(write_report(args.out), end="")


def compare_codes(args: argparse.Namespace) -> int:
    """Compares this code with a checkout. Returns 1 if a difference is above the tolerance."""
    from mirai_bench.benchmark.peer.pair import ParityOptions
    from mirai_bench.benchmark.peer.parity import run_parity
    from mirai_bench.utils.device import resolve_device

    fields = {name: getattr(args, name) for name in ParityOptions.__dataclass_fields__}
    options = ParityOptions(**fields | {"device": resolve_device(args.device)})
    return 0 if run_parity(args.peer, options, args.tolerance, args.out) else 1


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code."""
    args = parser().parse_args(argv)
    if args.kind == "parity":
        return compare_codes(args)
    if args.kind == "report":
        from mirai_bench.benchmark.report import write_report

        print(write_report(args.folder), end="")
    elif args.kind == "targets":
        measure_targets(args)
    else:
        measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
