"""Metric against epochs (or training FLOPs, or time): a line and a band over seeds for each arm, and the speed-up read off.

    python analysis/plot_convergence.py

Writes SVG, PDF and PNG (the same bytes for the same records) and the speed-up as Markdown.
"""

import sys
from collections import Counter

import matplotlib
import numpy as np
from common import STYLE, load, look, parser, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from speedup import AXES, Curve, curves, speedup_table

from mirai_bench.cli import run, say
from mirai_bench.errors import unknown
from mirai_bench.paper import is_papers, paper_size, read_paper
from mirai_bench.results import Results, file_stem, lower_is_better, primary_metric, refuse_mixed_protocols
from mirai_bench.stats import t_interval

BANDS = {
    "minmax": "band: least to greatest seed",
    "t": "band: 95 % t-interval of the mean over seeds",
}


def summary(by_seed: dict[int, Curve], band: str) -> tuple[np.ndarray, int]:
    """Curves of one arm → (P, 4) array of x, mean, low, high at the evaluations that most seeds have reached, and how many seeds."""
    count = Counter(len(curve) for curve in by_seed.values())
    reached = Counter(i for length, seeds in count.items() for i in range(length) for _ in range(seeds))
    n = max(reached.values())
    rows = []
    for i in sorted(i for i in reached if reached[i] == n):
        points = np.array([curve[i] for curve in by_seed.values() if len(curve) > i])
        estimate, ys = t_interval(points[:, 1]), points[:, 1]
        spread = (ys.min(), ys.max()) if band == "minmax" or n == 1 else (estimate.low, estimate.high)
        rows.append((points[:, 0].mean(), estimate.mean, *spread))
    return np.array(rows), n


def draw(results: Results, metric: str, x: str, band: str, log: bool) -> Figure:
    refuse_mixed_protocols(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes, ends, looks = figure.subplots(), {}, look(results)
        for arm, by_seed in curves(results, metric, x).items():
            if not by_seed:
                continue
            points, n = summary(by_seed, band)
            colour, marker = looks[arm]
            axes.plot(points[:, 0], points[:, 1], color=colour, marker=marker, markersize=3.5, linewidth=1.6)
            axes.fill_between(points[:, 0], points[:, 2], points[:, 3], color=colour, alpha=0.13, linewidth=0)
            planned = len(results.seeds(arm))
            ends[arm] = (points[-1, 0], points[-1, 1], colour, "" if n == planned else f" ({n} of {planned} seeds)")
        dashed = is_papers(results) and metric == "FID" and x == "epochs" and _draw_paper(axes, results, looks)
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(AXES[x][1])
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=x == "epochs"))
        axes.set_ylabel(f"{metric} ({'lower' if lower_is_better(metric) else 'higher'} is better)")
        axes.set_title(f"{results.axis}: {results.question}", fontsize=9, loc="left", wrap=True)
        _label_ends(axes, ends)
        seeds = max(len(results.seeds(arm)) for arm in results.arms)
        note = f"line: mean over {seeds} seed{'s' * (seeds != 1)}; {BANDS[band]}; profile {results.profile}"
        figure.supxlabel(
            note + "; dashed, open circles: the paper's single runs" * bool(dashed),
            fontsize=7,
            color="#555555",
            x=0.01,
            ha="left",
        )
    return figure


def _draw_paper(axes: Axes, results: Results, looks: dict[str, tuple[str, str]]) -> bool:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in read_paper(results.axis, paper_size(results)):
        if row["metric"] == "FID" and row["arm"] in looks:
            points.setdefault(row["arm"], []).append((int(row["epochs"]), float(row["value"])))
    for arm, curve in points.items():
        axes.plot(
            *zip(*sorted(curve), strict=True),
            color=looks[arm][0],
            linestyle="--",
            linewidth=1,
            marker="o",
            markerfacecolor="none",
            markersize=4,
        )
    return bool(points)


def _label_ends(axes: Axes, ends: dict[str, tuple[float, float, str, str]]) -> None:
    """Each arm's name at the end of its line, pushed apart where they would overlap, with a thin leader to the line's end."""
    if not ends:
        return
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    at = {arm: to_axes.transform((x, y)) for arm, (x, y, _, _) in ends.items()}
    order, gap = sorted(at, key=lambda arm: at[arm][1]), 0.045
    heights = [at[arm][1] for arm in order]
    for _ in range(200):  # relax: neighbours that are too near move apart
        for i in range(len(heights) - 1):
            short = gap - (heights[i + 1] - heights[i])
            if short > 1e-9:
                heights[i], heights[i + 1] = heights[i] - short / 2, heights[i + 1] + short / 2
        heights = [h + max(0.0, 0.01 - heights[0]) for h in heights]
    for arm, height in zip(order, heights, strict=True):
        _, _, colour, note = ends[arm]
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
        axes.annotate(
            arm + note, xy=at[arm], xytext=(1.05, height), xycoords="axes fraction", textcoords="axes fraction", color=colour, va="center",
            fontsize=8.5, arrowprops=leader, annotation_clip=False,
        )  # fmt: skip


def command(argv: list[str]) -> int:
    options = parser(
        "plot_convergence", __doc__.splitlines()[0], "python analysis/plot_convergence.py --axis foresight_source --x flops"
    )
    options.add_argument("--metric", help="what to draw (the Fréchet distance that the records carry)")
    options.add_argument("--x", choices=AXES, default="epochs", help="against what (epochs)")
    options.add_argument(
        "--band", choices=BANDS, default="minmax", help="over seeds: least to greatest, or the t-interval of the mean"
    )
    options.add_argument("--log", action="store_true", help="logarithmic metric axis")
    args = options.parse_args(argv)
    for results in load(args):
        metric = args.metric or primary_metric(results.metrics)
        if metric not in results.metrics:
            raise unknown("metric", metric, results.metrics)
        stem = results.name + (f"_{file_stem(metric)}" if args.metric else "")
        save(draw(results, metric, args.x, args.band, args.log), args.out, stem + (f"_{args.x}" if args.x != "epochs" else ""))
        text = speedup_table(results, metric)
        path = args.out / f"{stem}_speedup.md"
        path.write_text(text, encoding="utf-8")
        say(f"wrote {path}")
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
