"""What a sweep's own page in MLflow shows once its cells have ended."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mirai_bench.results.frame import Results, is_distance
from mirai_bench.results.reading import read_journals
from mirai_bench.results.stats import Estimate, t_interval
from mirai_bench.results.table import Table, build_table
from mirai_bench.results.writers import markdown_of_main
from mirai_bench.sweep.plan import Plan
from mirai_bench.tracking.sweep_page import Page, Point, send_page
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)

LEGEND = (
    "Below this run there is one for each arm, with the mean over its seeds, and one for each seed. In "
    "*Charts*, *Group by: arm* draws means and bands of the seeds, and behind the gear *X-axis: Metric* has "
    "epochs. *Artifacts* has the table, figures, and all of it as one page, {page}."
)
# Each with what is missing on the page if it fails.
SCRIPTS = {"fid_table": "table", "plot_convergence": "figures", "report": "report"}


def send_summary(plan: Plan, run_id: str) -> None:
    """Sends the table of a plan, its figures, and the means of its arms, if there are any records."""
    found = [each for each in read_journals(plan.runs, plan.sweep.axis, plan.profile) if each.records]
    for results in found:
        try:
            table = build_table(results)
        except UserError as error:
            log.info(f"no summary in MLflow: {error}")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            files = made_by_scripts(plan, Path(scratch))
            note = f"{markdown_of_main(table)}\n{LEGEND.format(page=f'{results.name}_report.html')}"
            send_page(run_id, Page(note, numbers(table), curves(results), files))


def numbers(table: Table) -> dict[str, float]:
    """Returns each arm's mean of each metric, and its change of the primary one, by name."""
    found: dict[str, float] = {}
    first = table.metrics[0]
    for row in table.rows:
        for metric in table.metrics:
            found |= with_interval(f"table/{metric}/{row.arm}", row.values[metric])
        in_log = is_distance(first)  # then the change is a share: -0.2 is a fifth less
        found |= with_interval(f"table/{first} change/{row.arm}", row.differences.get(first), in_log)
    return found


def with_interval(name: str, estimate: Estimate | None, in_log: bool = False) -> dict[str, float]:
    """Returns an estimate as numbers: its mean and, if it has any, the ends of its interval."""
    if estimate is None:
        return {}
    values = {name: estimate.mean, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    return {key: math.expm1(value) if in_log else value for key, value in finite.items()}


def curves(results: Results) -> dict[str, list[Point]]:
    """Returns the means of each arm at each evaluation, the baseline first."""
    arms = sorted(results.arms, key=lambda arm: arm != results.baseline)
    steps = sorted({record["step"] for record in results.records})
    found: dict[str, list[Point]] = {}
    for arm in arms:
        points: list[Point] = []
        for step in steps:
            for metric in ("epoch", *results.metrics):
                estimate = t_interval(results.by_seed(arm, step, metric).values())
                measured = with_interval(f"eval/{metric}", estimate)
                points += [Point(name, value, step) for name, value in measured.items()]
        if points:
            found[arm] = points
    return found


def made_by_scripts(plan: Plan, folder: Path) -> list[Path]:
    """Returns the tables, figures and report that the scripts of the analysis make of a plan, in a folder.

    What a script cannot make is missing, and a warning says why: the sweep itself is done by then.
    """
    words = [
        "--runs",
        str(plan.runs),
        "--axis",
        plan.sweep.axis,
        "--profile",
        plan.profile,
        "--out",
        str(folder),
    ]
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # they say what they write, and this folder is soon gone
    try:
        with scripts_found(), contextlib.redirect_stdout(io.StringIO()):
            for name, made in SCRIPTS.items():
                try:
                    importlib.import_module(name).command(words)
                except Exception as error:
                    log.warning(f"MLflow gets no {made} of this sweep: {type(error).__name__}: {error}")
    finally:
        logging.disable(before)
    return sorted(folder.iterdir())


def import_scripts() -> None:
    """Imports the scripts, which takes a second, before they are needed. A failure shows when they are."""
    with scripts_found(), contextlib.suppress(Exception):
        for name in SCRIPTS:
            importlib.import_module(name)


@contextlib.contextmanager
def scripts_found() -> Iterator[None]:
    """Returns a context in which the scripts of the analysis can be imported by their names."""
    folder = str(shipped("analysis"))
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
