"""Tuning: values of one arm are drawn at random, and runs that lag behind are stopped early (ASHA).

It is apart from the sweep: its runs are in no table of arms. A run lies in the folder of its fingerprint like any
other, so what an earlier search or a sweep has trained is not trained again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from mirai_bench.config.load import build_run, checked, merge, parse_sets, read_yaml
from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Range, Search, SweepFile
from mirai_bench.results.frame import lower_is_better
from mirai_bench.sweep import ray_tune
from mirai_bench.sweep.driver import DRIVER, WORKERS, Options, stop_file_on_signal
from mirai_bench.sweep.estimate import cell_flops
from mirai_bench.sweep.job import Job
from mirai_bench.sweep.plan import Plan, with_absolute_paths
from mirai_bench.tracking.mlflow_store import create_store
from mirai_bench.tracking.run_folder import RunFailed, RunFolder
from mirai_bench.tracking.ship import ship
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json
from mirai_bench.utils.log import configure_logging

log = logging.getLogger(__name__)

EXAMPLE = """  search:
    arm: internal-2d
    space:
      foresight.weight: {low: 0.1, high: 10, log: true}
      foresight.k: [1, 3, 9]
      foresight.layer: [4/12, 8/12, 12/12]"""


@dataclass(frozen=True)
class SearchJob:
    """What the trials of a search know."""

    check: Job
    """The arm itself, which is checked before anything is trained."""
    metric: str

    @property
    def base(self) -> dict[str, Any]:
        """Returns the configuration that drawn values override."""
        return self.check.configs[0]


@dataclass(frozen=True)
class SearchPlan:
    """What a search draws from, and where it writes."""

    search: Search
    config: RunConfig
    """The arm's configuration."""
    space: dict[str, Any]
    """What Ray Tune draws from, by field."""
    job: SearchJob
    scratch: Path

    @property
    def lower_is_better(self) -> bool:
        """Tells whether a lower value of the metric is better."""
        return lower_is_better(self.search.metric)


def with_values(base: dict[str, Any], values: dict[str, Any]) -> RunConfig:
    """Returns the arm's configuration with drawn values, such as {"foresight.k": 3}. Raises UserError if they do not fit."""
    settings = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    return with_absolute_paths(build_run(merge(base, parse_sets(settings)), "search.space"))


def run_trial(values: dict[str, Any], *, job: SearchJob) -> None:
    """Trains one drawn configuration and reports each evaluation, those of earlier attempts first.

    Tune ends the trial inside a report.
    """
    from mirai_bench.train import run
    from mirai_bench.train.trainer import resolve_hardware

    configure_logging()
    if not job.check.accepted():
        return
    config = with_values(job.base, values)
    folder = RunFolder(config.run_path)
    reported: set[int] = set()

    def report() -> None:
        for line in folder.journal.lines():
            if line["kind"] == "evaluation" and line["step"] not in reported:
                reported.add(line["step"])
                value = line["metrics"].get(job.metric, math.nan)
                tune.report({job.metric: value, "epoch": line["epoch"], "fingerprint": folder.path.name})

    report()
    stop_file = job.check.stop_file
    # KeyboardInterrupt: a stop was requested and a checkpoint saved. RunFailed, UserError: recorded in failed.json.
    with folder.log(), contextlib.suppress(KeyboardInterrupt, RunFailed, UserError):
        hardware = resolve_hardware(config)
        run.train(config, folder, hardware, on_evaluation=report, wait=True, stop=stop_file.exists)


def run_search(plan: Plan, path: Path, options: Options) -> list[dict[str, Any]]:
    """Runs the search of a sweep file. Returns a row per drawn configuration, the best one first.

    A row has values, epoch, metric, fingerprint and state. Raises UserError for whatever is wrong with the file.
    """
    folder = plan.runs / "searches"
    name, search_plan = _plan_search(plan, path, folder)
    search = search_plan.search
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{name}.lock", timeout=0):
            rows = _run_locked(search_plan, options)
    except Timeout:
        raise UserError(
            f"another process is at work on this search ({folder / name}.lock is held)"
        ) from None
    if rows and all(row["metric"] is None for row in rows):
        log.info(
            f"{search.metric} was never measured: choose a metric of the profile's evaluation as search.metric"
        )
    sign = 1 if search_plan.lower_is_better else -1
    rows.sort(key=lambda row: (row["metric"] is None, (row["metric"] or 0) * sign))
    write_json(folder / f"{name}.json", {"search": search.model_dump(mode="json"), "runs": rows})
    for row in rows:
        if row["fingerprint"]:
            run_folder = RunFolder(plan.runs / row["fingerprint"])
            ship(run_folder, parent=None, axis=None, arm="", seed=search_plan.config.seed)
    return rows


def describe_search(plan: Plan, path: Path) -> str:
    """Returns what a search will draw and what it will cost at most, as `name: value` lines. Starts nothing."""
    name, search_plan = _plan_search(plan, path, plan.runs / "searches")
    search = search_plan.search
    flops = cell_flops(search_plan.config)
    total = "not known" if flops is None else f"{search.samples * flops:.2e} at most"
    lines = [f"search: {name}", f"configurations: {search.samples}", f"metric: {search.metric}"]
    for field, values in search.space.items():
        shown = values.model_dump() if isinstance(values, Range) else list(values)
        lines.append(f"{field}: {shown}")
    return "\n".join([*lines, f"training FLOPs: {total}"])


def _plan_search(plan: Plan, path: Path, folder: Path) -> tuple[str, SearchPlan]:
    """Checks the file's `search:` and returns the name of the search, and its plan."""
    search = checked(SweepFile, read_yaml(path), str(path)).search
    if search is None:
        raise UserError(f"{path} has no `search:`: write for instance\n" + EXAMPLE)
    cell = next((cell for cell in plan.sweep.cells if cell.arm == search.arm), None)
    if cell is None:
        raise UserError(
            f"search.arm is {search.arm!r}, which --only leaves out: write --only {search.arm}, or nothing"
        )
    workers = cell.config.machine.workers
    if workers > 1:
        raise UserError(f"machine.workers is {workers}, but a search trains in one process a run: write 1")
    lower_is_better(search.metric)  # raises UserError for an unknown metric
    base = cell.config.model_dump(mode="json")
    space = {field: _domain(base, field, values) for field, values in search.space.items()}
    name = f"{plan.name}-{search.arm}"
    job = SearchJob(Job.beside([base], folder, name), search.metric)
    scratch = plan.runs / ".ray" / f"search-{name}"
    return name, SearchPlan(search, cell.config, space, job, scratch)


def _domain(base: dict[str, Any], field: str, values: Range | tuple[Any, ...]) -> Any:
    """Returns what Tune draws from.

    Every choice and both ends of a range must fit the configuration, otherwise UserError says which does not.
    """
    if not isinstance(values, Range):
        for value in values:
            with_values(base, {field: value})
        return tune.choice(list(values))
    for value in (values.low, values.high):
        with_values(base, {field: value})
    draw = tune.loguniform if values.log else tune.uniform
    return draw(values.low, values.high)


def _run_locked(plan: SearchPlan, options: Options) -> list[dict[str, Any]]:
    os.environ.update(WORKERS | DRIVER)
    search = plan.search
    machine = plan.config.machine
    check = plan.job.check
    check.begin()
    create_store()
    with ray_tune.session(options.cluster, WORKERS), stop_file_on_signal(check.stop_file):
        fitting = ray_tune.slots(machine, local=options.cluster is None)
        at_a_time = min(fitting, options.max_concurrent or search.samples)
        check = replace(check, processes_per_node=ray_tune.processes_per_node(machine, at_a_time))
        log.info(
            f"search of {search.samples} configs of {search.arm}, by {search.metric}; runs are in {machine.runs}"
        )
        ended = ray_tune.fit(
            tune.with_parameters(run_trial, job=replace(plan.job, check=check)),
            plan.space,
            machine,
            plan.scratch,
            check.stop_file,
            _tune_config(plan, options),
            retries=options.retries,
            every_second=_stop_if_wrong(check),
        )
    wrong = check.wrong()
    if wrong:
        raise UserError("\n  ".join(wrong))
    return [_row(result, search, machine.runs) for result in ended]


def _tune_config(plan: SearchPlan, options: Options) -> tune.TuneConfig:
    """Returns random search with ASHA. At `max_t` ASHA stops a run before it has written that it is done, hence + 1."""
    search = plan.search
    return tune.TuneConfig(
        metric=search.metric,
        mode="min" if plan.lower_is_better else "max",
        num_samples=search.samples,
        search_alg=BasicVariantGenerator(
            random_state=search.seed, max_concurrent=options.max_concurrent or 0
        ),
        scheduler=ASHAScheduler(
            time_attr="epoch",
            max_t=plan.config.train.epochs + 1,
            grace_period=plan.config.evaluation.at[0],  # type: ignore[arg-type]  # in epochs
            reduction_factor=search.reduction,
        ),
        reuse_actors=True,
    )


def _stop_if_wrong(check: Job) -> Callable[[], None]:
    def every_second() -> None:
        if check.wrong():
            check.stop_file.touch()

    return every_second


def _row(result: Any, search: Search, runs: Path) -> dict[str, Any]:
    metrics = result.metrics or {}
    fingerprint = metrics.get("fingerprint")
    value = metrics.get(search.metric)
    state: str = RunFolder(runs / fingerprint).state if fingerprint else "failed"
    return {
        "values": {name: result.config[name] for name in search.space},
        "epoch": metrics.get("epoch"),
        "metric": value if value is not None and math.isfinite(value) else None,
        "fingerprint": fingerprint,
        "state": "stopped early" if state == "pending" else state,
    }
