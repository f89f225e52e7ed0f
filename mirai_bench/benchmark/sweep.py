"""`benchmark sweep`: where the wall-clock time of a sweep goes that starts from nothing.

By default it has all arms of the injection level with two seeds, in cells of about a minute each. A
short sweep beforehand finds the number of epochs.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.targets import Row
from mirai_bench.config.load import SWEEPS
from mirai_bench.sweep.__main__ import show_table
from mirai_bench.sweep.driver import Options as SweepOptions
from mirai_bench.sweep.driver import Report, run_sweep
from mirai_bench.sweep.plan import Plan, folder_of, make_plan
from mirai_bench.utils.errors import UserError

EPOCHS_PER_EVALUATION = 2
CELL_SECONDS = 60  # that a cell takes by default


def with_epochs(number: int) -> list[str]:
    """Returns the settings of a run of so many epochs that is evaluated as often as usual."""
    epochs = range(EPOCHS_PER_EVALUATION, number + 1, EPOCHS_PER_EVALUATION)
    return [f"train.epochs={number}", f"evaluation.at=[{','.join(map(str, epochs))}]"]


def a_minute(file: Path, arms: list[str], seed: int, device: str, folder: Path) -> list[str]:
    """Returns the settings with which cells of these arms, by default all, take a minute on average.

    A short sweep finds them. It runs in a subprocess, so that the measured one pays for its own imports
    and Ray start.
    """
    settings = [f"machine.runs={folder}", f"machine.device={device}"]
    settings += with_epochs(EPOCHS_PER_EVALUATION)
    words = [sys.executable, "-m", "mirai_bench.sweep", str(file), "--seeds", str(seed)]
    words += ["--only", *arms] if arms else []
    words += [f"--set={setting}" for setting in settings]
    done = subprocess.run(words, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(
            "the short sweep that finds how long a minute is did not end well: write --set "
            "train.epochs=N to do without it"
        )
    cells = make_plan(file, seeds=[seed], only=arms, settings=settings).sweep.cells
    seconds = sum(sum(folder_of(cell).journal.measured_seconds().values()) for cell in cells) / len(cells)
    return with_epochs(EPOCHS_PER_EVALUATION * max(1, round(CELL_SECONDS / seconds)))


def row_of(plan: Plan, report: Report) -> Row:
    """Returns all of slots x wall-clock, divided among what it was spent on.

    Overhead is the share that was no training step, sampling or evaluation.
    """
    folders = [folder_of(cell) for cell in plan.sweep.cells]
    spent: dict[str, float] = {}
    for folder in folders:
        for part, seconds in folder.journal.measured_seconds().items():
            spent[part] = spent.get(part, 0.0) + seconds
    useful = sum(spent.values())  # so far: training steps, sampling, evaluation
    wall = sum(report.phases.values())
    rest = report.trial_seconds - report.ready_seconds - useful
    spent["imports and checks in trials"] = report.ready_seconds
    spent["checkpoints, journals and the rest of trials"] = rest
    spent["waiting for a trial"] = report.slots * report.phases["trials"] - report.trial_seconds
    for phase, seconds in report.phases.items():
        if phase != "trials":
            spent[phase] = report.slots * seconds
    done = all(folder.is_done for folder in folders)
    row: Row = {"kind": "sweep", "status": "measured" if done else "failed"}
    row |= {"axis": plan.sweep.axis.partition("+")[0], "profile": plan.profile, "cells": len(folders)}
    row |= {"cell_seconds": useful / len(folders), "at_a_time": report.slots, "wall_seconds": wall}
    return row | {"overhead": 1 - useful / (report.slots * wall), "slot_seconds": spent}


def measure(
    options: Options, file: Path | None, only: list[str], seeds: list[int], settings: list[str]
) -> list[Row]:
    """Measures the command from reading the file to its table, without the start of Python.

    `file` is by default that of the injection level. Without `settings` a cell takes about a
    minute.
    """
    file = file or SWEEPS / "injection_level.yaml"
    device = options.device.type
    before = Report()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # The sweep's driver, its trials and the table all find MLflow there.
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        settings = settings or a_minute(file, only, seeds[0], device, folder / "first")
        settings = [*settings, f"machine.runs={folder / 'runs'}", f"machine.device={device}"]
        with before.phase("plan"):
            plan = make_plan(file, seeds=seeds, only=only, settings=settings)
        report = run_sweep(plan, SweepOptions())
        report.phases |= before.phases
        with report.phase("table"), contextlib.redirect_stdout(io.StringIO()):
            show_table(plan)
        return [row_of(plan, report)]
