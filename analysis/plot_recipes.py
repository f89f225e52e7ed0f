"""Draws what the arms of a sweep change under two recipes of the baseline, side by side.

    python analysis/plot_recipes.py reports/data/superseded/injection_level_digits.jsonl \
        reports/data/injection_level_digits.jsonl

The first file has the records under the recipe of before, the second one those under the new one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib
from common import STYLE, add_out, draw_change, look, percent_axis, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mirai_bench.results.frame import Results, file_stem
from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.stats import Estimate
from mirai_bench.results.table import Table, build_table
from mirai_bench.results.writers import p_value
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError


def recipe_of(results: Results) -> str:
    """Returns the parts of the recipe that a reader compares, in words."""
    train = results.records[0]["run"]["config"].get("train", {})
    missing = {"lr", "lr_warmup", "epochs"} - train.keys()
    if missing:
        lacks = ", ".join(f"train.{name}" for name in sorted(missing))
        raise UserError(f"the records of {results.axis} do not say {lacks}: give files whose runs do")
    warmup = f"{100 * train['lr_warmup']:g} % warm-up" if train["lr_warmup"] else "no warm-up"
    return f"learning rate {train['lr']:g}, {warmup}, {train['epochs']} epochs"


def baseline_value(results: Results, table: Table) -> Estimate:
    """Returns the baseline's value. Raises UserError if there is none to compare with."""
    metric = table.metrics[0]
    own = [row.values.get(metric) for row in table.rows if row.arm == table.baseline]
    value = own[0] if own else None
    if value is None:
        raise UserError(
            f"{results.axis} ({results.profile}): its baseline {results.baseline} has no finite {metric} at "
            "the last evaluation: give records that have one"
        )
    return value


def draw(sweeps: list[Results]) -> Figure:
    """Returns a figure with a panel per sweep: the change of each arm relative to its baseline."""
    tables = [build_table(results) for results in sweeps]
    rows = [row.arm for row in tables[0].rows if row.arm != tables[0].baseline]
    if not rows:
        raise UserError(f"the first file has records of {sweeps[0].baseline} only: give one with other arms")
    metric = tables[0].metrics[0]
    with matplotlib.rc_context(STYLE):
        size = (9, 1.5 + 0.3 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(sweeps), sharex=True, sharey=True)
        for axes, results, table in zip(panels, sweeps, tables, strict=True):
            _draw_panel(axes, results, table, rows)
        panels[0].set_yticks(range(len(rows)), rows)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)  # the first arm on top, as in the table
        figure.supxlabel(f"{metric}: change relative to the baseline of the same recipe", fontsize=9)
    return figure


def _draw_panel(axes: Axes, results: Results, table: Table, arms: list[str]) -> None:
    metric = table.metrics[0]
    value = baseline_value(results, table)
    by_arm = {row.arm: row for row in table.rows}
    axes.axvline(0, color="black", linewidth=1)
    for place, arm in enumerate(arms):
        change = by_arm[arm].differences.get(metric) if arm in by_arm else None
        if change is None:
            continue
        draw_change(axes, place, change, *look(results)[arm])
        where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "ha": "right"}
        axes.annotate(f"p {p_value(change.p)}", (0.99, place - 0.28), fontsize=7, **where)
    percent_axis(axes)
    title = f"{recipe_of(results)}\nbaseline {value.mean:.2f} ± {value.half:.2f}, n {value.n}"
    axes.set_title(title, fontsize=8.5, loc="left")


def command(argv: list[str]) -> int:
    """Runs the script. Writes the figure."""
    parser = argparse.ArgumentParser(
        prog="python analysis/plot_recipes.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "records", nargs=2, type=Path, metavar="FILE", help="frozen records of one sweep each"
    )
    add_out(parser)
    args = parser.parse_args(argv)
    # Read one by one: files of one sweep would be joined, and these have two recipes.
    sweeps = [read_jsonl([path])[0] for path in args.records]
    for path, results in zip(args.records, sweeps, strict=True):
        if not results.records:
            raise UserError(f"{path} has no evaluation yet: give a file that has some")
    if sweeps[0].axis != sweeps[1].axis:
        raise UserError(f"these are two sweeps, {sweeps[0].axis} and {sweeps[1].axis}: give two files of one")
    save(draw(sweeps), args.out, file_stem(f"recipes_{sweeps[0].axis}"))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
