"""Ray, and nothing else: a session, and one trial a cell on Ray Tune. Imported when there is something to run."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune

from mirai_bench.config.run_config import Machine
from mirai_bench.sweep.job import Job, share_of_worker
from mirai_bench.sweep.trial import run_cell
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError

GRACE_SECONDS = 20.0  # for running cells to save a checkpoint, once the stop file is there


OBJECT_STORE_BYTES = (
    128 * 2**20
)  # configs alone travel through it; by default Ray takes a third of the memory


Ended = tuple[int, dict[str, Any], BaseException | None]


"""(cell number, what run_cell returned, why Ray gave it up)"""


@contextlib.contextmanager
def session(address: str | None, environment: dict[str, str]) -> Iterator[None]:
    """Joins the cluster at `address`, or starts Ray on this machine and ends it again; one that is up in this process is used and left."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    here = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    there = {"address": address, "runtime_env": {"env_vars": environment}}
    try:
        ray.init(**(there if address else here), logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"Ray did not start{f' at {address}' if address else ''}: {str(error).splitlines()[0]}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def nodes_up() -> list[dict[str, float]]:
    """The resources of each node that is up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def processes_by_node(machine: Machine, nodes: list[dict[str, float]]) -> list[int]:
    """How many processes of trials fit on each node."""
    share = share_of_worker(machine)
    return [min(int(node.get(name, 0) / amount + 1e-6) for name, amount in share.items()) for node in nodes]


def neighbours(machine: Machine, trials: int) -> int:
    """Processes of so many trials at a time that share one node, at most."""
    return max(1, min(max(processes_by_node(machine, nodes_up()), default=1), trials * machine.workers))


def slots(machine: Machine, local: bool) -> int:
    """Trials that fit at once, each process of one on a single node. Raises UserError where none ever will; a cluster may still grow, so
    there it is only said."""
    nodes, share, where = nodes_up(), share_of_worker(machine), "this machine" if local else "the cluster"
    for key, name, wanted in (("cpus", "CPU", machine.cpus), ("gpus", "GPU", machine.gpus)):
        there = sum(node.get(name, 0) for node in nodes)
        if wanted > there:
            message = f"machine.{key} is {wanted:g} for each trial, but {where} has {there:g}"
            if local:
                raise UserError(
                    f"{message}: write --set machine.{key}={there:g} or less, or join a cluster with --address"
                )
            say(f"warning: {message} at the moment")
            return 1
    fitting = sum(processes_by_node(machine, nodes))
    if fitting < machine.workers:
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in share.items())
        say(
            f"warning: each of machine.workers = {machine.workers} processes takes {wanted} of one node, and at the moment {fitting} fit on "
            "the cluster's nodes: trials wait until more join"
        )
    return max(1, fitting // machine.workers)


def resources(machine: Machine) -> dict[str, float]:
    """Of the trial itself. Where it only waits for its workers it holds nothing that they need, a byte, since Tune asks for something."""
    return {"cpu": machine.cpus, "gpu": machine.gpus} if machine.workers == 1 else {"cpu": 0, "memory": 1}


class StopFile(tune.Stopper):
    """Ends the experiment once the file is there: running cells save and return by themselves, the others are not begun."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.path.exists()


def fit(
    trainable: Callable[..., Any],
    space: dict[str, Any],
    machine: Machine,
    scratch: Path,
    stop_file: Path,
    tune_config: tune.TuneConfig,
    *,
    retries: int,
    every_second: Callable[[], None],
) -> tune.ResultGrid:
    """Runs the trials, with `every_second()` called meanwhile. Raises KeyboardInterrupt where the stop file ended it."""
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
        # stdout is for results: Tune writes there of trials that report nothing, however quiet it is asked to be
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return _in_thread(tuner.fit, every_second, stop_file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def execute(
    job: Job,
    machine: Machine,
    scratch: Path,
    *,
    max_concurrent: int | None,
    retries: int,
    every_second: Callable[[], None],
) -> list[Ended]:
    """One trial a cell, in their order."""
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
    return [
        (result.config["cell"], result.metrics or {}, result.error) for result in results if result.config
    ]


def _in_thread(fit: Callable[[], Any], every_second: Callable[[], None], stop_file: Path) -> Any:
    """fit() in a thread of its own, where Tune leaves signals alone: they are the main thread's, which waits and shows progress."""
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
            f"Ray ended ({str(error).splitlines()[0]}): run the same command again to go on"
        ) from error
    if error is not None:
        raise error
    return answer["results"]
