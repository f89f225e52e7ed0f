"""`benchmark sweep`: a sweep from nothing, in a folder of its own, and where its wall-clock went. By default six cells of about a minute, whose
number of epochs a short sweep finds beforehand.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mirai_bench.benchmark.options import Options
from mirai_bench.config.load import SWEEPS
from mirai_bench.results.reading import read_journals
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import markdown
from mirai_bench.sweep.driver import Options as SweepOptions
from mirai_bench.sweep.driver import Report, run_sweep
from mirai_bench.sweep.plan import Plan, make_plan, run_dir_of
from mirai_bench.tracking.run_folder import measured_parts, state_of
from mirai_bench.utils.errors import UserError

ARMS = ["baseline", "output-1d", "output-2d"]


EVERY = 2  # epochs from one evaluation to the next


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", default=SWEEPS / "injection_level.yaml")
    parser.add_argument("--only", nargs="+", default=ARMS, metavar="ARM", help=f"(default: {' '.join(ARMS)})")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help="(default: 0 1)")
    parser.add_argument(
        "--set",
        action="append",
        dest="settings",
        metavar="A.B=C",
        help="(default: as many epochs as a cell trains in a minute)",
    )


def epochs(number: int) -> list[str]:
    return [
        f"train.epochs={number}",
        f"evaluation.at={list(range(EVERY, number + 1, EVERY))}".replace(" ", ""),
    ]


def a_minute(args: argparse.Namespace, folder: Path) -> list[str]:
    """The settings with which a cell takes about a minute, from a sweep of its arms for a few epochs. A process of its own runs that: what
    it imports and starts, the measured one has to import and start again."""
    settings = [*epochs(EVERY), f"machine.runs={folder}/first", f"machine.device={args.device}"]
    only, seeds = args.only[:2], args.seeds[:1]
    words = [
        str(args.file),
        "--only",
        *only,
        "--seeds",
        *map(str, seeds),
        *(f"--set={setting}" for setting in settings),
    ]
    if subprocess.run(
        [sys.executable, "-m", "mirai_bench.sweep", *words], stdout=subprocess.DEVNULL
    ).returncode:
        raise UserError(
            "the short sweep that finds how long a minute is did not end well: write --set train.epochs=N to do without it"
        )
    cells = make_plan(args.file, seeds=seeds, only=only, settings=settings).sweep.cells
    seconds = sum(sum(measured_parts(run_dir_of(cell)).values()) for cell in cells) / len(cells)
    return epochs(EVERY * max(1, round(60 / seconds)))


def row_of(plan: Plan, report: Report) -> dict[str, Any]:
    """All of slots x wall-clock, by what it went to; overhead is the share of it that was no training step, sampling or evaluation."""
    runs = [measured_parts(run_dir_of(cell)) for cell in plan.sweep.cells]
    spent = {part: sum(run[part] for run in runs) for part in runs[0]}
    useful, total = sum(spent.values()), report.slots * sum(report.phases.values())
    spent["imports and checks in trials"] = report.ready_seconds
    spent["checkpoints, journals and the rest of trials"] = (
        report.trial_seconds - report.ready_seconds - useful
    )
    spent["waiting for a trial"] = report.slots * report.phases["trials"] - report.trial_seconds
    spent |= {phase: report.slots * seconds for phase, seconds in report.phases.items() if phase != "trials"}
    done = all(state_of(run_dir_of(cell)) == "done" for cell in plan.sweep.cells)
    return {
        "kind": "sweep", "status": "measured" if done else "failed", "axis": plan.sweep.axis, "profile": plan.profile,
        "cells": len(runs), "cell_seconds": useful / len(runs), "at_a_time": report.slots,
        "wall_seconds": sum(report.phases.values()), "overhead": 1 - useful / total, "slot_seconds": spent,
    }  # fmt: skip


def measure(args: argparse.Namespace, options: Options) -> list[dict[str, Any]]:
    """The command from reading the file to the table; only the start of Python is not in it."""
    plans = Report()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        settings = [
            *(args.settings or a_minute(args, Path(folder))),
            f"machine.runs={folder}/runs",
            f"machine.device={options.device.type}",
        ]
        with plans.phase("plan"):
            plan = make_plan(args.file, seeds=args.seeds, only=args.only, settings=settings)
        report = run_sweep(plan, SweepOptions())
        report.phases |= plans.phases
        with report.phase("table"):
            (results,) = read_journals(plan.runs)
            markdown(build_table(results))
        return [row_of(plan, report)]
