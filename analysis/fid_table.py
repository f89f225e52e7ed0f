"""Writes the table of a sweep: arms against the baseline, seed by seed, next to the paper's values.

    python analysis/fid_table.py

Writes Markdown, CSV, LaTeX and HTML, and the differences to the baseline as a figure.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import matplotlib
from common import (
    NAMED_WIDTHS,
    STYLE,
    add_figure,
    add_one_off,
    draw_change,
    load,
    look,
    parser,
    percent_axis,
    plain,
    save,
    write,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mirai_bench.results.cost import AXES, at_equal_cost, equal_cost_notes, one_off_notes, without_one_off
from mirai_bench.results.forms import forms
from mirai_bench.results.frame import Results, file_stem, is_distance, lower_is_better
from mirai_bench.results.frozen import freeze
from mirai_bench.results.looks import BETTER, WORSE
from mirai_bench.results.stats import Estimate
from mirai_bench.results.table import Table, build_table
from mirai_bench.results.terminal import for_stdout
from mirai_bench.results.writers import (
    CHANGE,
    FLOOR,
    FLOPS,
    PAPER,
    TIME,
    VERDICT,
    P,
    document,
    p_value,
)
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown

WIDTH = 8.0  # inches, of the figure
SIGNIFICANT = 0.05  # of the p-values after Holm's correction


def draw_differences(results: Results, table: Table, width: float = WIDTH) -> Figure:
    """Returns a figure with a line per arm: its mean difference to the baseline, and the interval.

    The marker is filled where a verdict was given, or without planned looks if the corrected p is below
    0.05.
    """
    metric = table.metrics[0]
    looks = look(results)
    rows = [row for row in table.rows if row.arm != table.baseline]
    better = "left" if lower_is_better(metric) else "right"
    filled = "verdict better or worse" if table.is_decided else f"Holm-corrected p below {SIGNIFICANT:g}"
    note = f"mean and t-interval over seeds, as in the table; filled: {filled}; profile {results.profile}"
    with matplotlib.rc_context(STYLE):
        # A line of 0.27 inches per arm, below a heading.
        figure = Figure(figsize=(width, 1.1 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="black", linewidth=1)
        for place, row in enumerate(rows):
            change = row.differences.get(metric)
            shown = change is not None and change.p < SIGNIFICANT
            if table.is_decided:
                shown = (row.verdict or "").startswith((BETTER, WORSE))
            _draw_difference(axes, place, change, shown, *looks[row.arm])
        axes.set_yticks(range(len(rows)), [row.arm for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first arm on top, as in the table
        what = "arm minus"
        if is_distance(metric):
            what = "change relative to"
            percent_axis(axes, most=int(width))
        end = "\n" if width < WIDTH else " "  # of a line, where the figure is narrow
        axes.set_xlabel(
            f"{metric}: {what} {table.baseline},{end}paired by seed ({better} of the line is better)"
        )
        figure.suptitle(plain(f"{table.title}\n{note}"), fontsize=9, x=0.01, ha="left", wrap=True)
    return figure


def _draw_difference(
    axes: Axes, place: int, change: Estimate | None, filled: bool, colour: str, marker: str
) -> None:
    text = "no pair of seeds"
    if change is not None:
        draw_change(axes, place, change, colour, marker, filled)
        text = f"p {p_value(change.p)}, n {change.n}"
    # At the right edge of the axes, whatever their scale, and at the height of the arm.
    axis: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}
    axes.annotate(text, (1.01, place), fontsize=7.5, annotation_clip=False, **axis)


def latex_width(inches: float | None) -> str:
    """Returns what a table is to fit, a column or a page, from the width of the figure beside it."""
    return "column" if inches is not None and inches <= NAMED_WIDTHS["column"] else "page"


def at_cost(loaded: Results, args: argparse.Namespace) -> tuple[Results, list[str]]:
    """Returns the results at the cost that the arguments ask for, and what to say of it."""
    results, notes = loaded, []
    if args.without_one_off:  # a table says by itself what it includes
        results = without_one_off(loaded)
        notes = one_off_notes(loaded, included=False, timing=not args.no_timing)
    if args.at == "epochs":
        return results, notes
    results = at_equal_cost(results, args.at)
    if not results.records:
        raise UserError(
            f"{loaded.axis} ({loaded.profile}): what its baseline spent in {args.at} is not known"
        )
    return results, equal_cost_notes(results, args.at) + notes


def command(argv: list[str]) -> int:
    """Runs the script. Writes the tables and the figure, and prints the table."""
    example = "python analysis/fid_table.py --axis injection_level"
    options = parser("fid_table", __doc__.splitlines()[0], example)
    add = options.add_argument
    timing = "leave out wall-clock time, the one thing that a repetition changes"
    frozen = "also write the records behind the table to OUT/data/AXIS_PROFILE.jsonl"
    chosen = (
        f"only these, in this order: n, {CHANGE}, {FLOOR}, {P}, {VERDICT}, {PAPER}, {FLOPS}, {TIME}, "
        "and names of metrics; default all"
    )
    add("--metric", help="first column; default the Fréchet distance that the records carry")
    add("--epoch", type=float, help="evaluation to tabulate; default the last")
    equal = "what is equal: epochs (default), or the FLOPs or seconds that the baseline spent in all"
    add("--at", choices=AXES, default="epochs", help=equal)
    add_one_off(options)
    add("--no-timing", action="store_true", help=timing)
    add("--freeze", action="store_true", help=frozen)
    add("--columns", nargs="+", default=[], metavar="NAME", help=chosen)
    add_figure(options)
    args = options.parse_args(argv)
    if args.at != "epochs" and args.epoch is not None:
        raise UserError(f"--epoch {args.epoch:g} with --at {args.at}: leave out one of the two")
    for loaded in load(args):
        # 1. The table, in four formats.
        results, notes = at_cost(loaded, args)
        if args.metric is not None and args.metric not in results.choices:
            raise unknown("metric", args.metric, results.choices)
        table = build_table(results, metric=args.metric, epoch=args.epoch, timing=not args.no_timing)
        title = table.title if args.at == "epochs" else f"{table.title} (at equal {AXES[args.at][1]})"
        table = replace(table, title=title, notes=[*table.notes, *notes])
        stem = results.name if args.at == "epochs" else f"{results.name}_at_{args.at}"
        for kind, text in forms(table, stem, args.columns, latex_width(args.width)).items():
            write(args.out, f"{stem}.{kind}", text)
        # 2. The figure, unless there is nothing to compare, and the records behind both.
        if len(table.rows) > 1:
            figure = draw_differences(results, table, args.width or WIDTH)
            save(figure, args.out, f"{stem}_differences", title=args.title)
        if args.freeze:
            frozen_stem = file_stem(f"{results.axis}_{results.profile}")
            freeze(loaded, args.out / "data" / f"{frozen_stem}.jsonl")
        print(for_stdout(document(table, args.columns)))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
