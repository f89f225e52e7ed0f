"""Ray Tune: a Ray session, and one trial per cell. Imported when there is something to run."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune

from mirai_bench.config.run_config import MachineConfig
from mirai_bench.sweep.job import Job, share_of_worker
from mirai_bench.sweep.trial import run_cell
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0  # for running cells to save a checkpoint, once the stop file exists
OBJECT_STORE_BYTES = 128 * 2**20  # only configurations travel through it; by default Ray takes a third of the memory


class EndedTrial(NamedTuple):
    """How a trial ended."""

    cell: int
    """Number of its cell."""
    seconds: dict[str, float]
    """What `run_cell` returned."""
    error: BaseException | None
    """Why Ray gave it up."""


# ---- the session


@contextlib.contextmanager
def session(address: str | None, environment: dict[str, str]) -> Iterator[None]:
    """Joins the cluster at `address`, or starts Ray on this machine and stops it afterwards.

    A session that is running in this process is used and left running. Raises UserError if Ray does not start.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    if address:
        options = {"address": address, "runtime_env": {"env_vars": environment}}
    try:
        ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f" at {address}" if address else ""
        raise UserError(f"Ray did not start{where}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


# ---- resources


def nodes_up() -> list[dict[str, float]]:
    """Returns the resources of each node that is up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fitting_processes(machine: MachineConfig, nodes: list[dict[str, float]]) -> list[int]:
    """Returns how many processes of trials fit on each node."""
    share = share_of_worker(machine)
    fitting = []
    for node in nodes:
        by_resource = [int(node.get(name, 0) / amount + 1e-6) for name, amount in share.items()]
        fitting.append(min(by_resource))
    return fitting


def processes_per_node(machine: MachineConfig, trials: int) -> int:
    """Returns an upper bound on the processes of `trials` concurrent trials that can share one node."""
    most = max(fitting_processes(machine, nodes_up()), default=1)
    return max(1, min(most, trials * machine.workers))


def slots(machine: MachineConfig, local: bool) -> int:
    """Returns how many trials fit at once, with each process on a single node.

    Raises UserError if none ever will. A cluster may still grow, so there it only warns.
    """
    nodes = nodes_up()
    where = "this machine" if local else "the cluster"
    for key, name, wanted in (("cpus", "CPU", machine.cpus), ("gpus", "GPU", machine.gpus)):
        available = sum(node.get(name, 0) for node in nodes)
        if wanted > available:
            message = f"machine.{key} is {wanted:g} for each trial, but {where} has {available:g}"
            if local:
                raise UserError(
                    f"{message}: write --set machine.{key}={available:g} or less, or join a cluster with --address"
                )
            log.warning(f"{message} at the moment")
            return 1
    fitting = sum(fitting_processes(machine, nodes))
    if fitting < machine.workers:
        share = " and ".join(f"{amount:g} {name}" for name, amount in share_of_worker(machine).items())
        log.warning(
            f"each of machine.workers = {machine.workers} processes takes {share} of one node, and at the moment "
            f"{fitting} fit on the cluster's nodes: trials wait until more join"
        )
    return max(1, fitting // machine.workers)


def resources(machine: MachineConfig) -> dict[str, float]:
    """Returns the resources of the trial process itself.

    If it only waits for workers it requests one byte of memory: Tune requires a request, and this one takes nothing
    that the workers need.
    """
    if machine.workers > 1:
        return {"cpu": 0, "memory": 1}
    return {"cpu": machine.cpus, "gpu": machine.gpus}


# ---- trials


class StopFile(tune.Stopper):
    """Ends the experiment when the file exists. Running cells save and return, and the others are not started."""

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
    machine: MachineConfig,
    scratch: Path,
    stop_file: Path,
    tune_config: tune.TuneConfig,
    *,
    retries: int,
    every_second: Callable[[], None],
) -> list[tune.Result]:
    """Runs the trials, and calls `every_second()` meanwhile. Raises KeyboardInterrupt if the stop file ended it."""
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources(machine)),
        param_space=space,
        tune_config=tune_config,
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            verbose=0,
            stop=StopFile(stop_file),
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    try:
        # stdout is for results, but Tune writes about trials that report nothing, whatever verbosity is asked for.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            results = _in_thread(tuner.fit, every_second, stop_file)
            return [results[number] for number in range(len(results))]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def execute(
    job: Job,
    machine: MachineConfig,
    scratch: Path,
    *,
    max_concurrent: int | None,
    retries: int,
    every_second: Callable[[], None],
) -> list[EndedTrial]:
    """Runs one Tune trial per cell and returns how they ended, in the order of the cells."""
    results = fit(
        tune.with_parameters(run_cell, job=job),
        {"cell": tune.grid_search(list(range(len(job.configs))))},
        machine,
        scratch,
        job.stop_file,
        tune.TuneConfig(max_concurrent_trials=max_concurrent, reuse_actors=True),
        retries=retries,
        every_second=every_second,
    )
    ended = []
    for result in results:
        if result.config:
            ended.append(EndedTrial(result.config["cell"], result.metrics or {}, result.error))
    return ended


def _in_thread(fit: Callable[[], Any], every_second: Callable[[], None], stop_file: Path) -> Any:
    """Calls fit() in a thread, where Tune does not take over the signals.

    Signals belong to the main thread, which waits here and shows progress.
    """
    answer: dict[str, Any] = {}

    def target() -> None:
        try:
            answer["results"] = fit()
        except BaseException as error:
            answer["error"] = error

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    deadline = None
    while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
        thread.join(1.0)
        every_second()
        if deadline is None and stop_file.exists():
            deadline = time.monotonic() + GRACE_SECONDS
    if stop_file.exists():
        raise KeyboardInterrupt
    error = answer.get("error")
    if isinstance(error, (ray.exceptions.RayError, tune.TuneError)):
        raise UserError(
            f"Ray ended ({str(error).splitlines()[0]}): run the same command again to resume"
        ) from error
    if error is not None:
        raise error
    return answer["results"]
