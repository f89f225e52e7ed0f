"""The driver: it trains what is missing of a plan, and sends every journal to MLflow as it grows.

What is to run, and what has run, is read from the run folders (plan.py). Ray Tune places, retries
and reuses processes (ray_tune.py). `Tuner.restore` is not used, because it silently ignores a grid
that has grown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.job import Job, last_line
from mirai_bench.sweep.mlflow_sync import Shipper
from mirai_bench.sweep.plan import Plan, folder_of, in_order_of_execution
from mirai_bench.sweep.progress import Screen
from mirai_bench.tracking.failure import Failure
from mirai_bench.utils.files import locked
from mirai_bench.utils.home import ensure_home
from mirai_bench.utils.signals import on_signals

log = logging.getLogger(__name__)

# The allocator of Linux's C library. A step on a CPU frees its activations and asks for as much again:
# in large pages, and kept, it takes 0.84 of the time (a million parameters, bf16), and no number changes.
KEPT_MEMORY = {
    # One tunable only: up to glibc 2.37 a process hands on the first one of several to its children.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # bytes, the most that it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
# Environment of trials. They have one thread each, and threads wait asleep: two spinning thread
# pools on two cores slow each other down twelvefold.
WORKERS = {
    **KEPT_MEMORY,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial that asks for no GPU sees none
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # a run's messages go to its own log file
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody reads them
}
# Environment of the driver.
DRIVER = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints to stdout, whatever verbosity is asked for
    "RAY_prestart_worker_first_driver": "0",  # Tune's trials need processes of their own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # of Tune's own state, which nobody reads
}


@dataclass(frozen=True)
class Options:
    """How a sweep is run."""

    max_concurrent: int | None = None
    """Number of concurrent trials. None means as many as fit."""
    address: str | None = None
    """Address of a Ray cluster. None starts Ray on this machine."""
    retries: int = 2
    """Number of attempts after a lost worker or a broken device."""

    @property
    def cluster(self) -> str | None:
        """Returns the address of the Ray cluster to join, which RAY_ADDRESS may name, or None."""
        return self.address or os.environ.get("RAY_ADDRESS") or None


@dataclass
class Report:
    """How a command went: its seconds by phase, and what the trials spent their time on."""

    phases: dict[str, float] = field(default_factory=dict)
    slots: int = 0
    """Number of concurrent trials."""
    trial_seconds: float = 0.0
    """Seconds of all trials."""
    ready_seconds: float = 0.0
    """Seconds of imports and of the check before training, in the trials."""
    measured_seconds: float = 0.0
    """Seconds spent in training steps, sampling and evaluation. Overhead is slots x wall-clock
    minus this."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the phase `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began

    def line(self) -> str:
        """Returns the report as one line."""
        wall = sum(self.phases.values())
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases.items())
        if not self.slots:
            return f"{wall:.1f} s: {phases}"
        rest = self.trial_seconds - self.ready_seconds - self.measured_seconds
        overhead = 1 - self.measured_seconds / (self.slots * wall)
        return (
            f"{wall:.1f} s: {phases}. Trials, {self.slots} at a time: training steps, sampling and "
            f"evaluation {self.measured_seconds:.1f} s, imports and checks "
            f"{self.ready_seconds:.1f} s, the rest of them {rest:.1f} s. Overhead: "
            f"{100 * overhead:.0f} % of {self.slots} x {wall:.1f} s"
        )


def run_sweep(plan: Plan, options: Options) -> Report:
    """Trains what is missing.

    Raises UserError before anything is trained, and KeyboardInterrupt if it was asked to stop.
    """
    lock = plan.file(".lock")
    busy = (
        f"another process is at work on this sweep ({lock} is held): see how far it is with "
        "`python -m mirai_bench.sweep status FILE`, or run this command again when it has ended"
    )
    with locked(lock, busy):
        # 1. What is missing is trained. If nothing is, MLflow may still lack something.
        report = Report()
        shipper = Shipper(plan)
        cells = missing(plan)
        os.environ.update(WORKERS | DRIVER)  # a local Ray hands them on to its workers
        shipper.start()
        if cells:
            train_missing(cells, options, shipper, report)
        # 2. The sender, which has kept pace so far, sends the rest.
        shipper.accept()  # also if nothing was missing
        with report.phase("MLflow, after the last trial"):
            shipper.close()
        return report


def missing(plan: Plan) -> list[Cell]:
    """Returns the cells that are not done, in the order in which they will run.

    Cells that another process is training come last: by then they may be done.
    """
    states = {cell.fingerprint: folder_of(cell).state for cell in plan.sweep.cells}
    cells = [cell for cell in plan.sweep.cells if states[cell.fingerprint] != "done"]
    ordered = in_order_of_execution(cells, plan.sweep.baseline)
    return sorted(ordered, key=lambda cell: states[cell.fingerprint] == "running")


def train_missing(cells: list[Cell], options: Options, shipper: Shipper, report: Report) -> None:
    """Trains the cells on Ray, and leaves failed.json for the trials that Ray gave up."""
    # 1. What driver and trials know of each other.
    plan = shipper.plan
    configs = [cell.config.model_dump(mode="json") for cell in cells]
    job = Job.beside(configs, plan.runs / "sweeps", plan.name)
    job.begin()
    machine = cells[0].config.machine  # the same for all cells of a sweep
    ensure_home(plan.runs)
    with report.phase("ray import"):
        from mirai_bench.sweep import ray_session, ray_tune
    with contextlib.ExitStack() as stack:
        # 2. Ray, and how many trials it can run at a time.
        with report.phase("ray start"):
            stack.enter_context(ray_session.session(options.cluster, WORKERS))
            fitting = ray_tune.slots(machine, local=options.cluster is None)
            report.slots = min(fitting, options.max_concurrent or len(cells), len(cells))
            on_one_node = ray_tune.processes_per_node(machine, report.slots)
            job = replace(job, processes_per_node=on_one_node)
        # A store that cannot be used is said now, and not after a night of training.
        with report.phase("MLflow, before the first trial"):
            shipper.check()
        screen = Screen(plan, cells)

        def every_second() -> None:
            if job.wrong() == []:  # and not None, as long as the check is not made
                shipper.accept()
                screen.refresh()

        # 3. The trials. Tune sees what a trial of one process holds, but not what the workers of
        # one hold, so their number is limited here.
        stopping = stop_file_on_signal(job.stop_file)
        with report.phase("trials"), stopping, contextlib.closing(screen):
            results = ray_tune.execute(
                job,
                machine,
                plan.runs / ".ray" / plan.name,
                max_concurrent=report.slots if machine.workers > 1 else options.max_concurrent,
                retries=options.retries,
                every_second=every_second,
            )
        # 4. What came out. `metrics` is what `run_cell` returned, if it did not raise.
        for cell, result in zip(cells, results, strict=True):
            seconds = result.metrics or {}
            report.trial_seconds += seconds.get("seconds", 0.0)
            report.ready_seconds += seconds.get("ready_seconds", 0.0)
            report.measured_seconds += seconds.get("measured_seconds", 0.0)
            if result.error is not None:
                attempts = f"given up after {options.retries + 1} attempts"
                folder_of(cell).write_failure(Failure(f"{attempts}: {last_line(result.error)}"))
        # 5. The sender sends the rest while Ray stops.
        shipper.end()
        with report.phase("ray stop"):
            stack.close()


@contextlib.contextmanager
def stop_file_on_signal(stop_file: Path) -> Iterator[None]:
    """Makes SIGTERM and the first Ctrl-C ask the running cells to save and leave.

    A second Ctrl-C does not wait for them.
    """

    def ask() -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        log.info("stopping: running cells save a checkpoint")

    try:
        with on_signals(ask, signal.SIGTERM, signal.SIGINT):
            yield
    finally:
        stop_file.unlink(missing_ok=True)
