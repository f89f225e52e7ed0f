"""Ray Tune: one trial per cell. Imported when there is something to run."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray import tune

from mirai_bench.config.machine_config import MachineConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cost import checkpoint_bytes
from mirai_bench.sweep.job import Job, share_of_worker
from mirai_bench.sweep.trial import run_cell
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)

# Of running cells, once the stop file exists: to come to the end of a step, and, all of them on one disk
# of this speed, to save a checkpoint. One of LlamaGen-XL has 12 GB.
GRACE_SECONDS = 20.0
DISK_BYTES_PER_SECOND = 100e6


# ---- resources


def nodes_up() -> list[dict[str, float]]:
    """Returns the resources of each node that is up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fitting_processes(machine: MachineConfig, nodes: list[dict[str, float]]) -> list[int]:
    """Returns how many processes of trials fit on each node."""
    share = share_of_worker(machine)
    fitting = []
    for node in nodes:
        # 1e-6, because 3 x (1 / 3) of a GPU may be a little less than one.
        by_resource = [int(node.get(name, 0) / amount + 1e-6) for name, amount in share.items()]
        fitting.append(min(by_resource))
    return fitting


def fitting_trials(machine: MachineConfig, nodes: list[dict[str, float]]) -> int:
    """Returns how many trials fit on the nodes at once, at least one."""
    return max(1, sum(fitting_processes(machine, nodes)) // machine.workers)


def processes_per_node(machine: MachineConfig, trials: int) -> int:
    """Returns an upper bound on the processes of concurrent trials that can share one node."""
    most = max(fitting_processes(machine, nodes_up()), default=1)
    return max(1, min(most, trials * machine.workers))


def slots(machine: MachineConfig, local: bool) -> int:
    """Returns how many trials fit at once, with each process on a single node.

    Raises UserError if none ever will. A cluster may still grow, so there it only warns.
    """
    nodes = nodes_up()
    where = "this machine" if local else "the cluster"
    # 1. What a trial takes, against all nodes together.
    for key, name, wanted in (("cpus", "CPU", machine.cpus), ("gpus", "GPU", machine.gpus)):
        available = sum(node.get(name, 0) for node in nodes)
        if wanted > available:
            found = f"machine.{key} is {wanted:g} for each trial, but {where} has {available:g}"
            if local:
                raise UserError(
                    f"{found}: write --set machine.{key}={available:g} or less, or join a cluster "
                    "with --address"
                )
            log.warning(f"{found} at the moment")
            return 1
    # 2. What one process takes, node by node: a process never spans two.
    fitting = sum(fitting_processes(machine, nodes))
    if fitting < machine.workers:
        amounts = [f"{amount:g} {name}" for name, amount in share_of_worker(machine).items()]
        log.warning(
            f"each of machine.workers = {machine.workers} processes takes {' and '.join(amounts)} "
            f"of one node, and at the moment {fitting} fit on the cluster's nodes: trials wait "
            "until more join"
        )
    return fitting_trials(machine, nodes)


def grace_seconds(job: Job, machine: MachineConfig) -> float:
    """Returns how long running cells may take to save a checkpoint and leave."""
    configs = [RunConfig.model_validate(fields) for fields in job.configs]
    largest = max((checkpoint_bytes(config) for config in configs), default=0)
    return GRACE_SECONDS + fitting_trials(machine, nodes_up()) * largest / DISK_BYTES_PER_SECOND


def resources(machine: MachineConfig) -> dict[str, float]:
    """Returns the resources of the trial process itself.

    If it only waits for workers it requests one byte of memory: Tune requires a request, and this
    one takes nothing that the workers need.
    """
    if machine.workers > 1:
        return {"cpu": 0, "memory": 1}
    return {"cpu": machine.cpus, "gpu": machine.gpus}


# ---- trials


class StopFile(tune.Stopper):
    """Ends the experiment when the file exists.

    Running cells save a checkpoint and return, and the others are not started.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Tells whether to stop everything."""
        return self.path.exists()


def fit(
    trainable: Callable[..., Any],
    space: dict[str, Any],
    job: Job,
    machine: MachineConfig,
    scratch: Path,
    tune_config: tune.TuneConfig,
    *,
    retries: int,
    every_second: Callable[[], None] = lambda: None,
    callbacks: Sequence[tune.Callback] = (),
) -> list[tune.Result]:
    """Runs the trials, and calls `every_second()` meanwhile. Tune tells `callbacks` of its trials.

    Raises UserError if the check found anything wrong, and KeyboardInterrupt if the stop file
    ended it. `scratch` is the folder of Tune's own state, which nobody needs afterwards.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources(machine)),
        param_space=space,
        tune_config=tune_config,
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            verbose=0,
            stop=StopFile(job.stop_file),
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    try:
        # stdout is for results, but Tune writes about trials that report nothing, whatever
        # verbosity is asked for.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return list(in_thread(tuner.fit, job, every_second, grace_seconds(job, machine)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def execute(
    job: Job, machine: MachineConfig, scratch: Path, max_concurrent: int | None, **options: Any
) -> list[tune.Result]:
    """Runs one Tune trial per cell and returns how they ended, in the order of the cells.

    `options` are those of `fit`.
    """
    trainable = tune.with_parameters(run_cell, job=job)
    space = {"cell": tune.grid_search(list(range(len(job.configs))))}
    # Starting a process and importing torch takes seconds, so a process trains many cells.
    tune_config = tune.TuneConfig(max_concurrent_trials=max_concurrent, reuse_actors=True)
    return fit(trainable, space, job, machine, scratch, tune_config, **options)


def in_thread(
    fit: Callable[[], Any], job: Job, every_second: Callable[[], None], grace: float = GRACE_SECONDS
) -> Any:
    """Calls fit() in a thread, where Tune does not take over the signals, and returns its result.

    Signals belong to the main thread, which waits here and shows progress. A check that found
    anything wrong stops the trials. Raises what `fit` raises.
    """
    ended: Future[Any] = Future()

    def target() -> None:
        try:
            ended.set_result(fit())
        except BaseException as error:
            ended.set_exception(error)

    # 1. Wait, but not longer than `grace` seconds once the stop file exists.
    # A daemon thread, because a command that has been stopped does not wait for Tune to end.
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    deadline = None
    while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
        thread.join(1.0)
        if job.wrong():
            job.stop_file.touch()  # nothing has been trained
        every_second()
        if deadline is None and job.stop_file.exists():
            deadline = time.monotonic() + grace
    # 2. How it ended.
    wrong = job.wrong()
    if wrong:
        raise UserError("\n  ".join(wrong))
    if job.stop_file.exists():
        raise KeyboardInterrupt
    try:
        return ended.result()
    except (ray.exceptions.RayError, tune.TuneError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Ray ended ({reason}): run the same command again to resume") from error
