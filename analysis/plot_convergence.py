"""Draws a metric against epochs, training FLOPs or time: a line and a band over seeds for each arm.

    python analysis/plot_convergence.py

Writes SVG, PDF and PNG (the same bytes for the same records), and the speed-up as Markdown. If a
sweep has many arms, each of them gets its own panel, together with the baseline.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from common import STYLE, add_one_off, load, look, parser, plain, save
from fd_targets import read_target, target_table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from speedup import speedup_table

from mirai_bench.results.cost import AXES, one_off_notes, with_one_off, without_one_off
from mirai_bench.results.frame import Results, file_stem, lower_is_better, refuse_mixed_protocols
from mirai_bench.results.paper import is_papers, paper_size, read_paper
from mirai_bench.results.stats import t_interval
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import unknown
from mirai_bench.utils.files import write_text

log = logging.getLogger(__name__)

ONE_PANEL = 6  # arms; more than these cannot be told apart in one panel
COLUMNS = 4  # of panels
LOG_FROM = 5.0  # ratio of the greatest to the least value from which the scale is logarithmic
GAP = 0.045  # between two labels, as a fraction of the height of the axes

Looks = dict[str, tuple[str, str]]  # (colour, marker) of each arm


class End(NamedTuple):
    """Where the line of an arm ends, and what stands there."""

    x: float
    y: float
    colour: str
    text: str


def t_band(values: Iterable[float]) -> tuple[float, float]:
    """Returns the ends of the t-interval of the mean, or the mean if it has none."""
    # Seaborn calls this with the values of all seeds at one x.
    estimate = t_interval(values)
    assert estimate is not None, "seaborn asks where there are values"
    if estimate.n == 1:
        return estimate.mean, estimate.mean
    return estimate.low, estimate.high


# For each name seaborn's `errorbar`, and what the figure says of it.
BANDS: dict[str, tuple[Any, str]] = {
    "minmax": (("pi", 100), "band: least to greatest seed"),
    "t": (t_band, "band: 95 % t-interval of the mean over seeds"),
}


def tidy(results: Results, metric: str, x: str) -> pd.DataFrame:
    """Returns the points of all lines: arm, seed, x, y.

    They are the finite values at the evaluations that most seeds of the arm have reached. The seeds
    share one x, which is their mean. A cost that is not known is no point.
    """
    field, _ = AXES[x]
    frame = results.frame
    # 1. Known values. `astype`, because a column with None holds objects.
    finite = np.isfinite(frame[metric].astype(float)) & np.isfinite(frame[field].astype(float))
    frame = frame[finite]
    # 2. Full evaluations. Where seeds come or go, the mean would jump without anything learned.
    seeds = frame.groupby(["arm", "epoch"])["seed"].transform("nunique")
    frame = frame[seeds == seeds.groupby(frame["arm"]).transform("max")]
    # 3. One x per evaluation. Seconds differ a little from seed to seed, and lines of different x
    #    could not be averaged.
    mean_x = frame.groupby(["arm", "epoch"])[field].transform("mean")
    return pd.DataFrame({"arm": frame["arm"], "seed": frame["seed"], "x": mean_x, "y": frame[metric]})


# ---- the figure


def draw(results: Results, metric: str, x: str, band: str, scale: str) -> Figure:
    """Returns the figure. `scale` is linear, log or auto."""
    # 1. What is drawn where. The paper's own curves are comparable under its own profile only.
    refuse_mixed_protocols(results)
    frame = tidy(results, metric, x)
    looks = look(results)
    panels = [results.arms]
    if len(results.arms) > ONE_PANEL:
        panels = [[results.baseline, arm] for arm in results.arms if arm != results.baseline]
    paper = {}
    if is_papers(results) and metric == "FID" and x == "epochs":
        paper = _papers_curves(results)
    if scale == "auto":
        least = frame["y"].min()
        scale = "log" if least > 0 and frame["y"].max() > LOG_FROM * least else "linear"
    with matplotlib.rc_context(STYLE):
        # 2. The lines.
        rows = -(-len(panels) // COLUMNS)  # rounded up
        size, columns = ((8.0, 4.6), 1) if len(panels) == 1 else ((9.0, 0.9 + 1.9 * rows), COLUMNS)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, arms in zip(grid.flat, panels, strict=False):
            _draw_arms(axes, frame, arms, looks, band)
            for arm in paper.keys() & set(arms):
                colour, _ = looks[arm]
                line: dict[str, Any] = {"color": colour, "linestyle": "--", "linewidth": 1}
                axes.plot(*paper[arm], **line, marker="o", mfc="none", ms=4)
            if len(panels) > 1:
                axes.set_title(arms[1], fontsize=8.5, color=looks[arms[1]][0], loc="left")
        # 3. The axes, once all is drawn: if one is logarithmic, seaborn draws geometric means.
        for axes in grid.flat:
            _dress(axes, scale, integers=x == "epochs")
        _leave_empty(grid, len(panels))
        # 4. The words. A single panel has its arms' names at the lines, several have them on top.
        if len(panels) == 1:
            _label_ends(grid[0, 0], _ends(results, frame, looks))
        better = "lower" if lower_is_better(metric) else "higher"
        caption = _caption(results, band, len(panels) > 1, bool(paper))
        figure.supxlabel(AXES[x][1], fontsize=9)
        figure.supylabel(f"{metric} ({better} is better)", fontsize=9)
        figure.suptitle(plain(caption), fontsize=9, x=0.01, ha="left", wrap=True)
    return figure


def _draw_arms(axes: Axes, frame: pd.DataFrame, arms: Sequence[str], looks: Looks, band: str) -> None:
    colours = {arm: looks[arm][0] for arm in arms}
    markers = {arm: looks[arm][1] for arm in arms}
    style: dict[str, Any] = {"hue": "arm", "hue_order": arms, "palette": colours}
    style |= {"style": "arm", "style_order": arms, "markers": markers, "dashes": False}
    style |= {"linewidth": 1.5, "markersize": 4.5, "markeredgewidth": 0}
    style |= {"errorbar": BANDS[band][0], "err_kws": {"alpha": 0.15, "linewidth": 0}}
    points = frame[frame["arm"].isin(arms)]
    if points.empty:  # seaborn warns of a palette without a point
        return
    sns.lineplot(points, x="x", y="y", legend=False, ax=axes, **style)


def _leave_empty(grid: np.ndarray, used: int) -> None:
    """Removes the axes beyond the first `used`, of which the lowest of each column keeps its numbers."""
    for axes in grid.flat[used:]:
        axes.remove()
    for axes in grid.flat[max(0, used - grid.shape[1]) : used]:
        axes.xaxis.set_tick_params(labelbottom=True)


def _dress(axes: Axes, scale: str, integers: bool) -> None:
    axes.set(xlabel="", ylabel="")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=integers))
    if scale == "log":
        axes.set_yscale("log")
        # A metric may span less than a decade, in which powers of ten alone would leave no tick.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _caption(results: Results, band: str, panels: bool, paper: bool) -> str:
    seeds = max(len(results.seeds(arm)) for arm in results.arms)
    line = "line: mean over 1 seed" if seeds == 1 else f"line: mean over {seeds} seeds"
    parts = [line, BANDS[band][1], f"profile {results.profile}"]
    if panels:
        parts.append(f"black: {results.baseline}")
    if paper:
        parts.append("dashed, open circles: the paper's single runs")
    return f"{results.axis}: {results.question}\n{'; '.join(parts)}"


def _add_notes(figure: Figure, notes: Sequence[str]) -> None:
    """Adds sentences on the costs to the caption."""
    if notes:
        with matplotlib.rc_context(STYLE):
            figure.suptitle(
                "\n".join([figure.get_suptitle(), *notes]), fontsize=9, x=0.01, ha="left", wrap=True
            )


def _papers_curves(results: Results) -> dict[str, tuple[list[int], list[float]]]:
    """Returns (epochs, FID) of each arm for which the paper has values."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    rows = read_paper(results.axis, paper_size(results))
    for row in sorted(rows, key=lambda row: (int(row["epochs"]), float(row["value"]))):
        if row["metric"] == "FID" and row["arm"] in results.arms:
            epochs, values = curves.setdefault(row["arm"], ([], []))
            epochs.append(int(row["epochs"]))
            values.append(float(row["value"]))
    return curves


def _ends(results: Results, frame: pd.DataFrame, looks: Looks) -> list[End]:
    """Returns the ends of all lines. The text says if seeds are missing."""
    ends = []
    for name, own in frame.groupby("arm"):
        arm = str(name)
        last = own[own["x"] == own["x"].max()]
        n = own["seed"].nunique()
        planned = len(results.seeds(arm))
        text = arm if n == planned else f"{arm} ({n} of {planned} seeds)"
        ends.append(End(last["x"].iloc[0], last["y"].mean(), looks[arm][0], text))
    return ends


def _label_ends(axes: Axes, ends: list[End]) -> None:
    """Writes each text at the end of its line, with a thin leader to it.

    Texts that overlap are pushed apart.
    """
    # 1. Where the lines end, from data to the axes' own (0 … 1, 0 … 1), from the lowest to the highest.
    axes.autoscale_view()  # otherwise the limits are set when the figure is saved
    to_axes = axes.transScale + axes.transLimits
    placed = [(end, tuple(to_axes.transform((end.x, end.y)))) for end in ends]
    placed.sort(key=lambda pair: pair[1][1])
    # 2. The texts, beside the axes.
    heights = _pushed_apart([place[1] for _, place in placed])
    where: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "axes fraction", "va": "center"}
    leader = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    for (end, place), height in zip(placed, heights, strict=True):
        style: dict[str, Any] = {"color": end.colour, "arrowprops": leader | {"color": end.colour}}
        at = (1.05, height)
        axes.annotate(end.text, place, at, fontsize=8.5, annotation_clip=False, **where, **style)


def _pushed_apart(heights: list[float]) -> list[float]:
    """Returns rising heights with a gap between neighbours, near the given ones."""
    # Neighbours that are too close give way by half of what is missing, which may bring them close
    # to the next ones: after a few rounds nothing moves any more.
    for _ in range(200):
        for i in range(len(heights) - 1):
            short = GAP - (heights[i + 1] - heights[i])
            if short > 1e-9:
                heights[i] -= short / 2
                heights[i + 1] += short / 2
        # The lowest text stays above the axis, below which its ticks are labelled.
        lift = max(0.0, 0.01 - heights[0]) if heights else 0.0
        heights = [height + lift for height in heights]
    return heights


# ---- the script


def command(argv: list[str]) -> int:
    """Runs the script. Writes the figures and the speed-up, which it also prints."""
    example = "python analysis/plot_convergence.py --axis foresight_source --x flops"
    options = parser("plot_convergence", __doc__.splitlines()[0], example)
    add = options.add_argument
    bands = "over seeds: least to greatest (default), or the t-interval of the mean"
    scales = f"scale of the metric; default auto, which is log beyond a factor of {LOG_FROM:g}"
    add("--metric", help="what to draw; default the Fréchet distance that the records carry")
    add("--x", choices=AXES, default="epochs", help="what the metric is drawn against; default epochs")
    add("--band", choices=BANDS, default="minmax", help=bands)
    add("--scale", choices=("auto", "linear", "log"), default="auto", help=scales)
    add("--no-timing", action="store_true", help="no speed-up in seconds: the machine was shared")
    add_one_off(options)
    args = options.parse_args(argv)
    for loaded in load(args):
        results = without_one_off(loaded) if args.without_one_off else with_one_off(loaded)
        notes = one_off_notes(loaded, not args.without_one_off, timing=not args.no_timing)
        metric = args.metric or results.primary
        if metric not in results.choices:
            raise unknown("metric", metric, results.choices)
        # 1. The figure. Its name says what is not drawn by default.
        stem = f"{results.name}_{file_stem(metric)}" if args.metric else results.name
        figure = draw(results, metric, args.x, args.band, args.scale)
        if args.x != "epochs":
            _add_notes(figure, notes)
        save(figure, args.out, stem if args.x == "epochs" else f"{stem}_{args.x}")
        # 2. The speed-up, which is read off the same curves.
        text = speedup_table(results, metric, timing=not args.no_timing)
        target = read_target(results, metric)
        if target is not None:
            text += "\n" + target_table(results, metric, target, timing=not args.no_timing)
        text += "".join(f"\n{note}\n" for note in notes)
        path = args.out / f"{stem}_speedup.md"
        write_text(path, text)
        log.info(f"wrote {path}")
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
