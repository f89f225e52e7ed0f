"""python -m mirai_bench.benchmark: train, sample, evaluate, data, sweep, targets, report, parity."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mirai_bench.benchmark import data, evaluate, options, report, sample, sweep, train
from mirai_bench.benchmark.targets import PLAN
from mirai_bench.utils.cli import run, say
from mirai_bench.utils.errors import UserError

KINDS = {
    "train": (train, "a training step and its parts, by size, arm and precision"),
    "sample": (sample, "sampling, by batch size and guidance"),
    "evaluate": (evaluate, "one evaluation"),
    "data": (data, "random access to the codes, against one file an image"),
    "sweep": (sweep, "where the wall-clock of a sweep goes"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.benchmark",
        description="Measures speed and memory; with --peer (repeatable) beside a checkout of the official Mirai or LlamaGen, whose code is "
        "run. Our steps and the peer's alternate; only ratios are comparable between machines.",
        epilog="examples: python -m mirai_bench.benchmark train --sizes small --peer ../Mirai --out reports/benchmarks/train_cpu.json; "
        "all that the targets need on a GPU: python -m mirai_bench.benchmark targets --device cuda --peer ../Mirai --peer ../LlamaGen "
        "--out reports/benchmarks",
    )
    commands = parser.add_subparsers(
        dest="kind", required=True, metavar="{" + ",".join([*KINDS, "targets", "report", "parity"]) + "}"
    )
    for name, (module, what) in KINDS.items():
        sub = commands.add_parser(name, help=what, description=module.__doc__)
        options.add_arguments(sub)
        module.add_arguments(sub)
    every = commands.add_parser(
        "targets", help="all that the project's targets need on this device; then the report"
    )
    options.add_arguments(every)
    again = commands.add_parser("report", help="tables and chart again from the JSON files of a folder")
    again.add_argument("folder", type=Path)
    commands.add_parser(
        "parity", help="the same weights and inputs through this code and the official code", add_help=False
    )
    return parser


def measure(args: argparse.Namespace) -> None:
    chosen = options.options_of(args)
    head = chosen.head()
    rows = [row | {"device": chosen.device.type} for row in KINDS[args.kind][0].measure(args, chosen)]
    print(report.table(rows), end="")
    if args.out:
        report.write_json(args.out, head, rows)


def measure_targets(args: argparse.Namespace) -> None:
    """Every command of the plan, each with its file; one that the machine cannot run is said and passed over."""
    if args.out is None:
        raise UserError("targets writes several files: give --out a folder, for instance reports/benchmarks")
    if args.device == "cuda" and not torch.cuda.is_available():
        say("not measured: no CUDA device is visible")
    else:
        shared = ["--device", args.device, "--threads", str(args.threads), "--rounds", str(args.rounds)]
        shared += [word for path in args.peer for word in ("--peer", str(path))]
        for kind, *words in PLAN[args.device]:
            say(f"{kind} {' '.join(words)}")
            out = ["--out", str(args.out / f"{kind}_{args.device}.json")]
            measure(build_parser().parse_args([kind, *shared, *words, *out]))
    args.out.mkdir(parents=True, exist_ok=True)
    print(report.write_report(args.out), end="")


def command(argv: list[str]) -> int:
    if argv[:1] == ["parity"]:
        from mirai_bench.benchmark.peer.parity import command as parity

        return parity(argv[1:])
    args = build_parser().parse_args(argv)
    if args.kind == "report":
        print(report.write_report(args.folder), end="")
    elif args.kind == "targets":
        measure_targets(args)
    else:
        measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
