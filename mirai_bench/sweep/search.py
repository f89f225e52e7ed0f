"""Tuning: one arm's values drawn at random, runs that lag behind stopped early (ASHA). Apart from the sweep: its runs stand in no table of arms.

A run lies in the folder of its fingerprint like any other, so what an earlier search or a sweep has trained is not trained again.
"""

from __future__ import annotations

import contextlib
import json
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
from mirai_bench.sweep import ray_tune as executor
from mirai_bench.sweep.driver import DRIVER, WORKERS, Options, stop_file_on_signal
from mirai_bench.sweep.job import Job
from mirai_bench.sweep.plan import Plan, with_absolute_paths
from mirai_bench.tracking import ship as tracking
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import log_of, state_of
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic


@dataclass(frozen=True)
class SearchJob:
    check: Job
    """the arm itself is checked, before anything is trained"""
    metric: str

    @property
    def base(self) -> dict[str, Any]:
        return self.check.configs[0]


def with_values(base: dict[str, Any], values: dict[str, Any]) -> RunConfig:
    """The arm's config with {"foresight.k": 3, …} laid over it. Raises UserError for values that do not fit."""
    settings = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    return with_absolute_paths(build_run(merge(base, parse_sets(settings)), "search.space"))


def run_trial(values: dict[str, Any], *, job: SearchJob) -> None:
    """Trains one drawn config, reporting each evaluation, those of earlier attempts first. Tune ends it inside a report."""
    from mirai_bench.train import run as training
    from mirai_bench.train.trainer import run_dir_of

    if not job.check.accepted():
        return
    config = with_values(job.base, values)
    run_dir = run_dir_of(config)
    reported: set[int] = set()

    def report() -> None:
        for line in read_journal(run_dir / "journal.jsonl"):
            if line["kind"] == "evaluation" and line["step"] not in reported:
                reported.add(line["step"])
                value = line["metrics"].get(job.metric, math.nan)
                tune.report({job.metric: value, "epoch": line["epoch"], "fingerprint": run_dir.name})

    report()
    # asked to stop: its checkpoint is there; what it cannot get past: its failed.json says so
    with log_of(run_dir), contextlib.suppress(KeyboardInterrupt, training.RunFailed, UserError):
        training.train(config, run_dir, on_evaluation=report, wait=True, stop=job.check.stop_file.exists)


def run_search(plan: Plan, path: Path, options: Options) -> list[dict[str, Any]]:
    """→ one row a drawn config, the best first: its values, epoch, metric, fingerprint, state."""
    search = checked(SweepFile, read_yaml(path), str(path)).search
    if search is None:
        raise UserError(f"{path} has no `search:`: write for instance\n" + EXAMPLE)
    cell = next((cell for cell in plan.sweep.cells if cell.arm == search.arm), None)
    if cell is None:
        raise UserError(
            f"search.arm is {search.arm!r}, which --only leaves out: write --only {search.arm}, or nothing"
        )
    if cell.config.machine.workers > 1:
        raise UserError(
            f"machine.workers is {cell.config.machine.workers}, but a search trains in one process a run: write 1"
        )
    lower = lower_is_better(search.metric)
    base = cell.config.model_dump(mode="json")
    space = {name: _domain(base, name, values) for name, values in search.space.items()}
    folder = plan.runs / "searches"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{plan.name}-{search.arm}"
    job = SearchJob(Job.beside([base], folder, name), search.metric)
    try:
        with FileLock(folder / f"{name}.lock", timeout=0):
            rows = _run_locked(
                job, cell.config, space, search, options, folder.parent / ".ray" / f"search-{name}", lower
            )
    except Timeout:
        raise UserError(f"another process is at work on this search ({folder / name}.lock is held)") from None
    if rows and all(row["metric"] is None for row in rows):
        say(
            f"{search.metric} was never measured: choose a metric of the profile's evaluation as search.metric"
        )
    rows.sort(key=lambda row: (row["metric"] is None, (row["metric"] or 0) * (1 if lower else -1)))
    write_atomic(
        folder / f"{name}.json",
        json.dumps({"search": search.model_dump(mode="json"), "runs": rows}, indent=1),
    )
    for row in rows:
        if row["fingerprint"]:
            tracking.ship(plan.runs / row["fingerprint"], parent=None, axis=None, arm="", seed=cell.seed)
    return rows


EXAMPLE = """  search:
    arm: internal-2d
    space:
      foresight.weight: {low: 0.1, high: 10, log: true}
      foresight.k: [1, 3, 9]
      foresight.layer: [4/12, 8/12, 12/12]"""


def _domain(base: dict[str, Any], name: str, values: Range | tuple[Any, ...]) -> Any:
    """What Tune draws from; every choice and both ends of a range fit the config, or UserError says which does not."""
    for value in (values.low, values.high) if isinstance(values, Range) else values:
        with_values(base, {name: value})
    if not isinstance(values, Range):
        return tune.choice(list(values))
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _run_locked(
    job: SearchJob,
    config: RunConfig,
    space: dict[str, Any],
    search: Search,
    options: Options,
    scratch: Path,
    lower: bool,
) -> list[dict[str, Any]]:
    os.environ.update(WORKERS | DRIVER)
    job.check.begin()
    tracking.create_store()
    address = options.address or os.environ.get("RAY_ADDRESS")
    with executor.session(address, WORKERS), stop_file_on_signal(job.check.stop_file):
        at_a_time = min(
            executor.slots(config.machine, local=not address), options.max_concurrent or search.samples
        )
        job = replace(
            job, check=replace(job.check, neighbours=executor.neighbours(config.machine, at_a_time))
        )
        say(
            f"search of {search.samples} configs of {search.arm}, by {search.metric}; runs are in {config.machine.runs}"
        )
        ended = executor.fit(
            tune.with_parameters(run_trial, job=job),
            space,
            config.machine,
            scratch,
            job.check.stop_file,
            tune.TuneConfig(
                metric=search.metric,
                mode="min" if lower else "max",
                num_samples=search.samples,
                search_alg=BasicVariantGenerator(
                    random_state=search.seed, max_concurrent=options.max_concurrent or 0
                ),
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=config.train.epochs
                    + 1,  # at max_t ASHA stops a run, before it has written that it is done
                    grace_period=config.evaluation.at[0],
                    reduction_factor=search.reduction,
                ),
                reuse_actors=True,
            ),
            retries=options.retries,
            every_second=_refuse(job.check),
        )
    if job.check.wrong():
        raise UserError("\n  ".join(job.check.wrong()))
    return [_row(result, search, config.machine.runs) for result in ended]


def _refuse(check: Job) -> Callable[[], None]:
    return lambda: check.stop_file.touch() if check.wrong() else None


def _row(result: Any, search: Search, runs: Path) -> dict[str, Any]:
    metrics = result.metrics or {}
    fingerprint, value = metrics.get("fingerprint"), metrics.get(search.metric)
    state = state_of(runs / fingerprint) if fingerprint else "failed"
    return {
        "values": {name: result.config[name] for name in search.space},
        "epoch": metrics.get("epoch"),
        "metric": value if value is not None and math.isfinite(value) else None,
        "fingerprint": fingerprint,
        "state": "stopped early" if state == "pending" else state,
    }
