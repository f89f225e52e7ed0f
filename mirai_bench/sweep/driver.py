"""The driver: what is missing of a plan is trained, and every journal is sent to MLflow as it grows.

What is to run, and what has run, is read from the run folders (plan.py); Ray Tune places, retries and reuses processes (executor.py).
`Tuner.restore` is not used: it silently ignores an enlarged grid.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.job import Job
from mirai_bench.sweep.mlflow_sync import Shipper
from mirai_bench.sweep.plan import Plan, in_order_of_execution, run_dir_of
from mirai_bench.sweep.progress import Screen
from mirai_bench.tracking.run_folder import state_of
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic

# One thread a trial, and threads that wait asleep: two spinning pools on two cores slow each other twelvefold.
WORKERS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial that asks for no GPU sees none
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a run says goes to its log.txt
    "RAY_TRAIN_METRICS_ENABLED": "0",  # which nobody reads
}


DRIVER = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints to stdout, however quiet
    "RAY_prestart_worker_first_driver": "0",  # Tune's trials need processes of their own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # of Tune's own state, which nobody reads
}


@dataclass(frozen=True)
class Options:
    max_concurrent: int | None = None
    address: str | None = None
    retries: int = 2


@dataclass
class Report:
    """How a command went: its seconds by phase, and where the trials' time went."""

    phases: dict[str, float] = field(default_factory=dict)
    slots: int = 0
    trial_seconds: float = 0.0
    ready_seconds: float = 0.0
    """of imports and the check before training, in the trials"""
    measured_seconds: float = 0.0
    """of training steps, sampling and evaluation: what is left of slots x wall-clock is overhead"""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began

    def line(self) -> str:
        wall = sum(self.phases.values())
        text = f"{wall:.1f} s: " + ", ".join(
            f"{name} {seconds:.1f} s" for name, seconds in self.phases.items()
        )
        if not self.slots:
            return text
        inside = self.trial_seconds - self.ready_seconds - self.measured_seconds
        return (
            f"{text}. Trials, {self.slots} at a time: training steps, sampling and evaluation {self.measured_seconds:.1f} s, imports and "
            f"checks {self.ready_seconds:.1f} s, the rest of them {inside:.1f} s. Overhead: "
            f"{100 * (1 - self.measured_seconds / (self.slots * wall)):.0f} % of {self.slots} x {wall:.1f} s"
        )


def run_sweep(plan: Plan, options: Options) -> Report:
    """Trains what is missing. Raises UserError before anything is trained, KeyboardInterrupt when it was asked to stop."""
    plan.file(".lock").parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.file(".lock"), timeout=0):
            return _run_locked(plan, options)
    except Timeout:
        raise UserError(
            f"another process is at work on this sweep ({plan.file('.lock')} is held): see how far it is with "
            "`python -m mirai_bench.sweep status FILE`, or run this command again when it has ended"
        ) from None


def _run_locked(plan: Plan, options: Options) -> Report:
    report, shipper, cells = Report(), Shipper(plan), missing(plan)
    os.environ.update(WORKERS | DRIVER)
    if cells:
        train_missing(plan, cells, options, shipper, report)
    else:
        accept(plan, shipper)
        shipper.start()
    with report.phase("MLflow, after the last trial"):
        shipper.end(failed=any(state_of(run_dir_of(cell)) == "failed" for cell in plan.sweep.cells))
    return report


def accept(plan: Plan, shipper: Shipper) -> None:
    """From here on the plan stands: for tables, and for MLflow."""
    if not shipper.accepted.is_set():
        plan.write()
        shipper.accepted.set()


def missing(plan: Plan) -> list[Cell]:
    """Cells that are not done, in the order in which they will run; those that another process trains at the moment come last."""
    states = {cell.fingerprint: state_of(run_dir_of(cell)) for cell in plan.sweep.cells}
    cells = [cell for cell in plan.sweep.cells if states[cell.fingerprint] != "done"]
    ordered = in_order_of_execution(cells, plan.sweep.baseline)
    return sorted(ordered, key=lambda cell: states[cell.fingerprint] == "running")


def train_missing(plan: Plan, cells: list[Cell], options: Options, shipper: Shipper, report: Report) -> None:
    address, machine = options.address or os.environ.get("RAY_ADDRESS"), cells[0].config.machine
    job = Job.beside([cell.config.model_dump(mode="json") for cell in cells], plan.runs / "sweeps", plan.name)
    job.begin()
    with report.phase("ray import"):
        from mirai_bench.sweep import ray_tune as executor
    with contextlib.ExitStack() as stack:
        with report.phase("ray start"):
            stack.enter_context(executor.session(address, WORKERS))
            report.slots = min(
                executor.slots(machine, local=not address), options.max_concurrent or len(cells), len(cells)
            )
            job = replace(job, neighbours=executor.neighbours(machine, report.slots))
        # Tune sees what a trial of one process holds; of several, that is the workers'
        at_a_time = report.slots if machine.workers > 1 else options.max_concurrent
        shipper.start()
        screen = Screen(plan, cells)

        def every_second() -> None:
            wrong = job.wrong()
            if wrong:
                job.stop_file.touch()  # nothing has been trained
            elif wrong is not None:
                accept(plan, shipper)
                screen.refresh()

        with report.phase("trials"), stop_file_on_signal(job.stop_file):
            try:
                ended = executor.execute(
                    job, machine, plan.runs / ".ray" / plan.name, max_concurrent=at_a_time,
                    retries=options.retries, every_second=every_second,
                )  # fmt: skip
            except KeyboardInterrupt:
                if job.wrong():
                    raise UserError("\n  ".join(job.wrong())) from None
                raise
            finally:
                screen.close()
        with report.phase("ray stop"):
            stack.close()
    for number, seconds, error in ended:
        report.trial_seconds += seconds.get("seconds", 0.0)
        report.ready_seconds += seconds.get("ready_seconds", 0.0)
        report.measured_seconds += seconds.get("measured_seconds", 0.0)
        if error is not None:
            leave_failure(run_dir_of(cells[number]), error, options.retries)
    accept(plan, shipper)


def leave_failure(run_dir: Path, error: BaseException, retries: int) -> None:
    """For a trial that Ray gave up: its worker was lost, or it raised, more than `retries` times."""
    if not (run_dir / "failed.json").is_file():
        run_dir.mkdir(parents=True, exist_ok=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"given up after {retries + 1} attempts: {lines[-1] if lines else type(error).__name__}"
        write_atomic(run_dir / "failed.json", json.dumps({"reason": reason, "step": None}))


@contextlib.contextmanager
def stop_file_on_signal(stop_file: Path) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C ask the running cells to save and leave; a second one does not wait for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        say("stopping: running cells save a checkpoint")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)
