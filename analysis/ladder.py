"""Draws what each arm changes against the size of the model, from the digits to the paper's models.

    python analysis/ladder.py

Writes the figure, and the numbers as Markdown and CSV. The effects are those of the sweeps' own
tables (rungs.py). The paper's values are single runs, without an interval.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from common import COLOURS, STYLE, load, parser, percent_axis, save, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rungs import METRICS, SINGLE, Point, by_arm, joined, papers_points, points_of

from mirai_bench.results.frame import is_distance, refuse_mixed_protocols
from mirai_bench.results.looks import BETTER, WORSE
from mirai_bench.results.notes import MISSING
from mirai_bench.results.writers import difference
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.text_table import markdown_table

COLUMNS = 4  # of panels
NAME_LINES = 3  # of data sets above a panel
NAME_HEIGHT = 8  # points
APART = 0.16  # of two points of a panel, in decades of the number of parameters
UNITS = {1e9: "B", 1e6: "M", 1e3: "k"}
CSV_COLUMNS = (
    "arm,data,profile,parameters,train_flops,epochs,metric,n,difference,difference_low,"
    "difference_high,confidence,verdict,sweeps"
)
CAPTION = (
    "bar: t-interval over seeds, as in the sweep's table; filled: verdict better or worse; open: undecided, "
    "pilot, or no verdict; cross: a single run, no interval. Data, tokenizer, metric and length of training "
    "change from rung to rung, too, and so does the share of the distance that no arm can change. Two rungs "
    "are no trend."
)
NOTES = (
    "Effect: the change of the geometric mean relative to the baseline of the same sweep, paired by seed, "
    "with the t-interval and the verdict of that sweep's own table. Below 0 is better. Level: that of the "
    "interval. FLOPs: of the training of one run of the arm, the cost of its teacher included.",
    "**The rungs differ in data, tokenizer, metric, recipe and length of training at once**: a difference "
    "between two of them has no single cause.",
    "The floors differ, too. The digits' tokenizer is exact, whereas on CIFAR-10 most of the distance to "
    "the images is the tokenizer's own error, which no arm can change. `--metric reconstructions` measures "
    "to what the tokenizer makes of the images, where the records have it; verdicts are by the primary "
    "metric only. The paper's FID has the error of its tokenizer in it either way.",
    "An arm is the same on two rungs if its foresight is configured alike. The width of its projectors "
    "follows the model, the training of an encoder of codes the data, and pretrained encoders count as one "
    "kind: VGG16 on CIFAR-10, DINOv2 in the paper. Runs that two sweeps share are one point, with the "
    "seeds of the sweep that has more.",
    "The paper's values are one run an arm, at the last epoch that the arm and its baseline both have, with "
    "guidance (CFG 2.0 for B, 1.75 for L and XL). How far a second run would be from them is not known.",
)


# ---- the figure


def draw(points: list[Point]) -> Figure:
    """Returns a figure with a panel for each arm that is on two rungs or more."""
    panels = by_arm(points)
    data_sets = list(dict.fromkeys(p.data for p in sorted(points, key=lambda p: p.parameters)))
    colours = dict(zip(data_sets, COLOURS, strict=False))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)  # rounded up
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.6 + 2.3 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (arm, own) in zip(grid.flat, panels.items(), strict=False):
            axes.axhline(0, color="black", linewidth=1)
            axes.set_title(arm, fontsize=9, loc="left", pad=10 + NAME_HEIGHT * NAME_LINES)
            _draw_points(axes, own, colours)
            _name_data_sets(axes, own, colours, data_sets)
        # The axes are shared: what is set on one is set on all.
        first = grid[0, 0]
        sizes = [point.parameters for own in panels.values() for point in own]
        first.set_xscale("log")
        first.set_xlim(min(sizes) / 4, max(sizes) * 6)  # room for the names
        first.xaxis.set_major_locator(LogLocator(numticks=12))
        first.xaxis.set_major_formatter(lambda x, _: short(x))
        first.xaxis.set_minor_locator(NullLocator())
        percent_axis(first, "y")
        # The panels above an empty place have the numbers themselves.
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes in grid.flat[len(panels) - columns : len(panels)]:
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel("parameters", fontsize=9)
        figure.supylabel("change relative to the baseline", fontsize=9)
        metrics = ", ".join(dict.fromkeys(point.metric for own in panels.values() for point in own))
        title = f"Change of the Fréchet distance ({metrics}) against the size of the model; less is better"
        figure.suptitle(f"{title}\n{CAPTION}", fontsize=9, x=0.01, ha="left", wrap=True)
    return figure


def _draw_points(axes: Axes, points: list[Point], colours: dict[str, str]) -> None:
    places = np.log10([point.parameters for point in points])
    # Points that would cover each other are moved apart.
    for i, (before, here) in enumerate(pairwise(places), start=1):
        places[i] = max(here, before + APART)
    for point, place in zip(points, places, strict=True):
        filled = point.verdict.startswith((BETTER, WORSE))
        colour = colours[point.data]
        style: dict[str, Any] = {"color": colour, "marker": "x" if point.verdict == SINGLE else "o"}
        reach = None if math.isnan(point.change.half) else point.change.half
        face = colour if filled else "white"
        axes.errorbar(10**place, point.change.mean, yerr=reach, markersize=5.5, capsize=3, mfc=face, **style)


def _name_data_sets(axes: Axes, points: list[Point], colours: dict[str, str], data_sets: list[str]) -> None:
    """Writes the names of the data sets above the axes, each over its points."""
    for name in dict.fromkeys(point.data for point in points):
        centre = fmean(math.log10(point.parameters) for point in points if point.data == name)
        # Several lines in turn, because neighbours are wider than the distance between them.
        above = 3 + NAME_HEIGHT * (data_sets.index(name) % NAME_LINES)
        where: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(
            name, (10**centre, 1), (0, above), color=colours[name], fontsize=7, ha="center", **where
        )


# ---- the numbers


def short(number: float) -> str:
    """Writes a number of parameters with three digits."""
    scale = next((scale for scale in UNITS if number >= scale * (1 - 1e-9)), 1)
    return f"{number / scale:.3g}{UNITS.get(scale, '')}"


def report(points: list[Point]) -> str:
    """Returns the table and what has to be known to read it, in Markdown."""
    header = ["arm", "data", "parameters", "FLOPs", "epochs", "metric", "n", "effect", "level", "verdict"]
    rows = []
    for point in points:
        level = MISSING if math.isnan(point.confidence) else f"{100 * point.confidence:.1f} %"
        flops = MISSING if point.flops is None else f"{point.flops:.1e}"
        row = [point.arm, point.data, short(point.parameters), flops, f"{point.epochs:g}"]
        row += [point.metric, str(point.change.n), difference(point.change, point.metric), level]
        rows.append([*row, point.verdict, ", ".join(point.sweeps)])
    table = markdown_table([*header, "in sweeps"], rows)
    drawn = by_arm(points)
    two = [arm for arm, own in drawn.items() if len({point.rung for point in own}) == 2]
    one = list(dict.fromkeys(point.arm for point in points if point.arm not in drawn))
    notes = list(NOTES)
    if two:
        notes.append(f"Two rungs show no trend: {'; '.join(two)}.")
    if one:
        notes.append(f"On one rung only, and not drawn: {'; '.join(one)}.")
    listed = "".join(f"- {note}\n" for note in notes)
    return f"# The effect of each arm against scale\n\n{table}\n{listed}"


def comma_separated(points: list[Point]) -> str:
    """Returns the numbers as CSV. Differences are relative changes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS.split(","))
    for point in points:
        change = point.change
        line = [point.arm, point.data, point.profile, point.parameters, _exact(point.flops)]
        line += [f"{point.epochs:g}", point.metric, change.n]
        line += [_exact(math.expm1(value)) for value in (change.mean, change.low, change.high)]
        writer.writerow([*line, _exact(point.confidence), point.verdict, " ".join(point.sweeps)])
    return out.getvalue()


def _exact(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:.6g}"


# ---- the script


def frozen_sweeps() -> list[Path]:
    """Returns the frozen records of sweeps that ship with the project."""
    found = []
    for path in sorted(shipped("reports", "data").glob("*.jsonl")):
        with open(path, encoding="utf-8") as file:
            if json.loads(file.readline()).get("kind") == "sweep":
                found.append(path)
    return found


def command(argv: list[str]) -> int:
    """Runs the script. Writes the figure and the table, and prints the table in Markdown."""
    example = "python analysis/ladder.py --metric reconstructions"
    options = parser("ladder", __doc__.splitlines()[0], example)
    measured = "what the distance is measured to: the images (default), or their reconstructions where known"
    options.add_argument("--metric", choices=METRICS, default=METRICS[0], help=measured)
    args = options.parse_args(argv)
    if not (args.records or args.runs or args.sweep):
        args.records = frozen_sweeps()
    # 1. The points. A sweep of planted data has no Fréchet distance.
    points = papers_points()
    for results in load(args):
        refuse_mixed_protocols(results)
        if is_distance(results.primary):
            points += points_of(results, args.metric)
    points = joined(points)
    if not by_arm(points):
        raise UserError("no arm is on two rungs: give the records of more sweeps with --records FILE …")
    # 2. The figure and the numbers.
    stem = "ladder" if args.metric == METRICS[0] else f"ladder_{args.metric}"
    save(draw(points), args.out, stem)
    for kind, text in {"md": report(points), "csv": comma_separated(points)}.items():
        write(args.out, f"{stem}.{kind}", text)
    print(report(points))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
