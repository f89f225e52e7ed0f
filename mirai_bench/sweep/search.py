"""Tuning: values of one arm are drawn at random, and the configurations are compared.

Runs that lag behind are stopped early (ASHA), or every configuration is trained to its end with
several seeds. It is apart from the sweep: its runs are in no table of arms. A run lies in the folder of its
fingerprint like any other, so what an earlier search or a sweep has trained is not trained again.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from mirai_bench.config.checking import checked
from mirai_bench.config.load import as_settings, build_run, merge, parse_sets
from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Range, Search, Space, SweepFile
from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.results.frame import lower_is_better
from mirai_bench.sweep import ray_session, ray_tune
from mirai_bench.sweep.cell import lasting_errors_stay_here, train_cell
from mirai_bench.sweep.driver import DRIVER, WORKERS, Options, stop_file_on_signal
from mirai_bench.sweep.estimate import cell_flops
from mirai_bench.sweep.job import Job
from mirai_bench.sweep.plan import Plan, with_absolute_paths
from mirai_bench.sweep.search_progress import Progress
from mirai_bench.sweep.search_table import HELDOUT, compare, in_words, table_of
from mirai_bench.tracking.mlflow_store import create_store
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.search_page import send_search
from mirai_bench.tracking.ship import ship
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import locked, write_json
from mirai_bench.utils.log import configure_logging
from mirai_bench.utils.plugins import load
from mirai_bench.utils.text_table import markdown_table

log = logging.getLogger(__name__)

EXAMPLE = """  search:
    arms:
      {arm}:
        foresight.weight: {{low: 0.1, high: 10, log: true}}
        foresight.k: [1, 3, 9]
        foresight.layer: [4/12, 8/12, 12/12]"""


@dataclass(frozen=True)
class SearchPlan:
    """What the search of one arm draws from, and where it writes."""

    arm: str
    search: Search
    config: RunConfig
    """The arm's configuration, which drawn values override."""
    file: Path
    """What came out. The lock and the job's files lie in the same folder."""
    lower: bool
    """Whether a lower value of the metric is better."""

    @property
    def space(self) -> Space:
        """Returns what values are drawn from, by field."""
        return self.search.arms[self.arm]

    def described(self) -> dict[str, Any]:
        """Returns the search of this arm, as its record has it."""
        fields = self.search.model_dump(mode="json")
        space = fields.pop("arms")[self.arm]
        return {"arm": self.arm, "space": space} | fields


# ---- in a trial


def with_values(base: dict[str, Any], values: dict[str, Any]) -> RunConfig:
    """Returns the arm's configuration with drawn values, such as {"foresight.k": 3}.

    Raises UserError if they do not fit.
    """
    return with_absolute_paths(build_run(merge(base, parse_sets(as_settings(values))), "search.space"))


def run_trial(values: dict[str, Any], *, job: Job, metric: str) -> None:
    """Trains one drawn configuration with one seed and reports each evaluation.

    Tune may end it inside a report.

    The only cell of the job is the arm itself, which is checked before anything is trained.
    """
    configure_logging()
    load(job.plugins)
    if not job.accepted():
        return
    config = with_values(job.configs[0], values)
    folder = RunFolder(config.run_path)
    reported: set[int] = set()  # steps

    def report() -> None:
        for line in folder.journal.lines("evaluation"):
            if line["step"] not in reported:
                reported.add(line["step"])
                value = line["metrics"].get(metric, math.nan)
                found = {metric: value, "epoch": line["epoch"], "fingerprint": folder.path.name}
                found[HELDOUT] = line["metrics"].get(HELDOUT, math.nan)
                tune.report(found | {"seconds": line["train_seconds"]})

    report()  # the evaluations of earlier attempts come first
    with lasting_errors_stay_here(folder):
        train_cell(config, job.stop_file, report)


# ---- in the driver


def run_search(search_plan: SearchPlan, plan: Plan, options: Options) -> list[dict[str, Any]]:
    """Runs one search of a sweep file. Returns a row per drawn configuration, the best one first.

    A row has the drawn values, the runs (one per seed), the means over them, and why it does not
    count, if it does not.
    """
    # 1. Draw and train.
    search = search_plan.search
    lock = search_plan.file.with_suffix(".lock")
    with locked(lock, f"another process is at work on this search ({lock} is held)"):
        runs = _draw(search_plan, options)
    # 2. The best first, then those that do not count, and those without a measurement last.
    rows = compare(runs, search, search_plan.lower)
    if rows and all(row["metric"] is None for row in rows):
        log.info(
            f"{search.metric} was never measured: choose a metric of the profile's evaluation as "
            "search.metric"
        )
    record: dict[str, Any] = {"search": search_plan.described(), "profile": plan.profile}
    record |= {"config": search_plan.config.for_record(), "configurations": rows}
    write_json(search_plan.file, record)
    # 3. To MLflow, below a run that shows the table. They belong to no sweep.
    name = f"{plan.sweep.axis}, {search_plan.arm}"
    parent = send_search(name, plan.profile, markdown_table(*table_of(rows)), record)
    for run in runs if parent is not None else ():
        if run["fingerprint"]:
            folder = RunFolder(plan.runs / run["fingerprint"])
            label = {"axis": f"search {name}", "arm": in_words(run["values"]), "seed": run["seed"]}
            ship(folder, parent=parent, **label, stopped_early=True)
    return rows


def describe_search(search_plan: SearchPlan) -> str:
    """Returns a search as the file describes it, and what it will cost at most, as YAML."""
    search = search_plan.search
    flops = cell_flops(search_plan.config)
    # At most, because ASHA stops most runs early.
    total = "not known" if flops is None else f"{search.num_runs(search_plan.arm) * flops:.2e} at most"
    text = yaml.safe_dump(search_plan.described(), sort_keys=False)
    return f"{text}training FLOPs: {total}"


def plan_searches(plan: Plan, path: Path) -> list[SearchPlan]:
    """Returns the searches of a sweep file whose arms the plan has.

    Raises UserError for whatever is wrong with them.
    """
    search = checked(SweepFile, read_yaml(path), str(path)).search
    if search is None:
        tuned = next((arm for arm in plan.sweep.arms if arm != plan.sweep.baseline), plan.sweep.baseline)
        raise UserError(f"{path} has no `search:`: write for instance\n" + EXAMPLE.format(arm=tuned))
    planned = [arm for arm in search.arms if arm in plan.sweep.arms]
    if not planned:
        arms = ", ".join(search.arms)
        raise UserError(f"--only leaves out every arm that is searched: write one of {arms}, or nothing")
    return [_plan_search(arm, search, plan) for arm in planned]


def _plan_search(arm: str, search: Search, plan: Plan) -> SearchPlan:
    # 1. The arm that it starts from.
    cell = next(cell for cell in plan.sweep.cells if cell.arm == arm)
    workers = cell.config.machine.workers
    if workers > 1:
        raise UserError(
            f"machine.workers is {workers}, but a search trains each run in one process: write 1",
        )
    base = cell.config.model_dump(mode="json")
    # 2. Whatever could be drawn is checked now, and not when it is drawn hours later.
    for field, values in search.arms[arm].items():
        # Every choice and both ends of a range must fit the configuration.
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            with_values(base, {field: value})
    file = plan.runs / "searches" / f"{plan.name}-{arm}.json"
    return SearchPlan(arm, search, cell.config, file, lower_is_better(search.metric))


def domain(values: Range | tuple[Any, ...], is_grid: bool) -> Any:
    """Returns what Tune draws the values of a field from, or, for a grid, all of its values."""
    if not isinstance(values, Range):
        return tune.grid_search(list(values)) if is_grid else tune.choice(list(values))
    draw = tune.loguniform if values.log else tune.uniform
    return draw(values.low, values.high)


def _draw(plan: SearchPlan, options: Options) -> list[dict[str, Any]]:
    """Trains the drawn configurations on Ray, and returns a row for each."""
    os.environ.update(WORKERS | DRIVER)
    search = plan.search
    machine = plan.config.machine
    base = plan.config.model_dump(mode="json")
    name = plan.file.stem
    # 1. What driver and trials know of each other, and the store of the results.
    job = Job.beside([base], plan.file.parent, name)
    job.begin()
    create_store()
    with ray_session.session(options.cluster, WORKERS), stop_file_on_signal(job.stop_file):
        # 2. How many trials Ray can run at a time.
        fitting = ray_tune.slots(machine, local=options.cluster is None)
        at_a_time = min(fitting, options.max_concurrent or search.num_runs(plan.arm))
        on_one_node = ray_tune.processes_per_node(machine, at_a_time)
        job = replace(job, processes_per_node=on_one_node)
        log.info(
            f"search of {search.num_configurations(plan.arm)} configs of {plan.arm}, by {search.metric}; "
            f"runs are in {machine.runs}"
        )
        # 3. The trials.
        ended = ray_tune.fit(
            tune.with_parameters(run_trial, job=job, metric=search.metric),
            {"seed": tune.grid_search(list(search.seeds or (plan.config.seed,)))}
            | {field: domain(values, search.samples == "all") for field, values in plan.space.items()},
            job,
            machine,
            machine.runs / ".ray" / f"search-{name}",
            _tune_config(plan, options),
            retries=options.retries,
            callbacks=[Progress(search, plan.arm, partial(with_values, base))],
        )
    return [_row(result, plan, machine.runs) for result in ended]


def _tune_config(plan: SearchPlan, options: Options) -> tune.TuneConfig:
    """Returns random search, with ASHA (asynchronous successive halving, arXiv 1810.05934) or not."""
    search = plan.search
    at_a_time = options.max_concurrent or 0  # 0 means as many as fit
    epochs = plan.config.train.epochs
    # `constant_grid_search`: the drawn values are the same for all seeds.
    drawer = BasicVariantGenerator(
        random_state=search.seed, max_concurrent=at_a_time, constant_grid_search=True
    )
    scheduler = None
    if search.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr="epoch",
            # + 1, because ASHA stops a run at `max_t`, before it has written that it is done.
            max_t=epochs + 1,
            # Without evaluations on the way nothing is stopped. Epochs need not be whole.
            grace_period=min((*plan.config.evaluation.at, epochs)),  # type: ignore[arg-type]
            reduction_factor=search.reduction,
        )
    return tune.TuneConfig(
        metric=search.metric,
        mode="min" if plan.lower else "max",
        num_samples=1 if search.samples == "all" else search.samples,  # of the whole grid
        search_alg=drawer,
        scheduler=scheduler,
        reuse_actors=True,
    )


def _row(result: Any, plan: SearchPlan, runs: Path) -> dict[str, Any]:
    metrics = result.metrics or {}
    fingerprint = metrics.get("fingerprint")
    value = metrics.get(plan.search.metric)
    state: str = RunFolder(runs / fingerprint).state if fingerprint else "failed"
    heldout = metrics.get(HELDOUT)
    return {
        "values": {name: result.config[name] for name in plan.space},
        "seed": result.config["seed"],
        "epoch": metrics.get("epoch"),
        "metric": value if value is not None and math.isfinite(value) else None,
        HELDOUT: heldout if heldout is not None and math.isfinite(heldout) else None,
        "seconds": metrics.get("seconds"),
        "fingerprint": fingerprint,
        # A run that ASHA stopped has neither done.json nor failed.json, like one to come.
        "state": "stopped early" if state == "pending" else state,
    }
