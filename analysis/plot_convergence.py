"""Metric against epochs (or training FLOPs, or time): a line and a band over seeds for each arm, and the speed-up read off.

    python analysis/plot_convergence.py

Writes SVG, PDF and PNG (the same bytes for the same records) and the speed-up as Markdown. A sweep of many arms gets one panel an arm,
each beside the baseline.
"""

import sys
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from common import STYLE, load, look, parser, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from speedup import AXES, speedup_table

from mirai_bench.results.frame import (
    Results,
    file_stem,
    lower_is_better,
    primary_metric,
    refuse_mixed_protocols,
)
from mirai_bench.results.paper import is_papers, paper_size, read_paper
from mirai_bench.results.stats import t_interval
from mirai_bench.utils.cli import run, say
from mirai_bench.utils.errors import unknown

ONE_PANEL = 6  # arms; more than these cannot be told apart in one
COLUMNS = 4
LOG_FROM = 5.0  # times the least value


def t_band(values: np.ndarray) -> tuple[float, float]:
    estimate = t_interval(list(values))
    return (estimate.low, estimate.high) if len(values) > 1 else (values[0], values[0])


# name: (seaborn's errorbar, what the figure says of it)
BANDS: dict[str, tuple[tuple[str, int] | Callable[[np.ndarray], tuple[float, float]], str]] = {
    "minmax": (("pi", 100), "band: least to greatest seed"),
    "t": (t_band, "band: 95 % t-interval of the mean over seeds"),
}


def tidy(results: Results, metric: str, x: str) -> pd.DataFrame:
    """arm, seed, x, y: the finite values at the evaluations that most seeds of the arm have reached; seeds share one x (their mean)."""
    frame = results.frame
    frame = frame[np.isfinite(frame[metric].astype(float))]
    seeds = frame.groupby(["arm", "epoch"])["seed"].transform("nunique")
    frame = frame[seeds == seeds.groupby(frame["arm"]).transform("max")]
    mean_x = frame.groupby(["arm", "epoch"])[AXES[x][0]].transform("mean")
    return pd.DataFrame({"arm": frame["arm"], "seed": frame["seed"], "x": mean_x, "y": frame[metric]})


def draw(results: Results, metric: str, x: str, band: str, scale: str) -> Figure:
    refuse_mixed_protocols(results)
    frame, looks = tidy(results, metric, x), look(results)
    others = [arm for arm in results.arms if arm != results.baseline]
    panels = [results.arms] if len(results.arms) <= ONE_PANEL else [[results.baseline, arm] for arm in others]
    paper = _papers_curves(results) if is_papers(results) and metric == "FID" and x == "epochs" else {}
    if scale == "auto":
        scale = "log" if frame["y"].min() > 0 and frame["y"].max() > LOG_FROM * frame["y"].min() else "linear"
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // COLUMNS)
        size, columns = ((8, 4.6), 1) if len(panels) == 1 else ((9, 0.9 + 1.9 * rows), COLUMNS)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, arms in zip(grid.flat, panels, strict=False):
            _draw_arms(axes, frame, arms, looks, band)
            for arm in paper.keys() & set(arms):
                axes.plot(
                    *paper[arm],
                    color=looks[arm][0],
                    linestyle="--",
                    linewidth=1,
                    marker="o",
                    mfc="none",
                    ms=4,
                )
            if len(panels) > 1:
                axes.set_title(arms[1], fontsize=8.5, color=looks[arms[1]][0], loc="left")
        for axes in (
            grid.flat
        ):  # once all is drawn: on an axis that is logarithmic already, seaborn draws geometric means
            _dress(axes, scale, integers=x == "epochs")
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        if len(panels) == 1:
            _label_ends(grid[0, 0], _ends(results, frame, looks))
        figure.supxlabel(AXES[x][1], fontsize=9)
        figure.supylabel(
            f"{metric} ({'lower' if lower_is_better(metric) else 'higher'} is better)", fontsize=9
        )
        figure.suptitle(
            _caption(results, band, len(panels) > 1, bool(paper)), fontsize=9, x=0.01, ha="left", wrap=True
        )
    return figure


def _draw_arms(
    axes: Axes, frame: pd.DataFrame, arms: Sequence[str], looks: dict[str, tuple[str, str]], band: str
) -> None:
    sns.lineplot(
        frame[frame["arm"].isin(arms)], x="x", y="y", hue="arm", style="arm", hue_order=arms, style_order=arms, ax=axes, legend=False,
        palette={arm: looks[arm][0] for arm in arms}, markers={arm: looks[arm][1] for arm in arms}, dashes=False,
        errorbar=BANDS[band][0], markersize=4.5, markeredgewidth=0, linewidth=1.5, err_kws={"alpha": 0.15, "linewidth": 0},
    )  # fmt: skip


def _dress(axes: Axes, scale: str, integers: bool) -> None:
    axes.set(xlabel="", ylabel="")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=integers))
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _caption(results: Results, band: str, panels: bool, paper: bool) -> str:
    seeds = max(len(results.seeds(arm)) for arm in results.arms)
    parts = [
        f"line: mean over {seeds} seed{'s' * (seeds != 1)}",
        BANDS[band][1],
        f"profile {results.profile}",
    ]
    parts += [f"black: {results.baseline}"] * panels + [
        "dashed, open circles: the paper's single runs"
    ] * paper
    return f"{results.axis}: {results.question}\n{'; '.join(parts)}"


def _papers_curves(results: Results) -> dict[str, tuple[list[int], list[float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in read_paper(results.axis, paper_size(results)):
        if row["metric"] == "FID" and row["arm"] in results.arms:
            points.setdefault(row["arm"], []).append((int(row["epochs"]), float(row["value"])))
    return {arm: tuple(map(list, zip(*sorted(curve), strict=True))) for arm, curve in points.items()}


def _ends(
    results: Results, frame: pd.DataFrame, looks: dict[str, tuple[str, str]]
) -> dict[str, tuple[float, float, str, str]]:
    """arm → where its line ends, its colour, and how many of its seeds are there where some are missing."""
    ends = {}
    for arm, own in frame.groupby("arm"):
        last, n, planned = own[own["x"] == own["x"].max()], own["seed"].nunique(), len(results.seeds(arm))
        note = "" if n == planned else f" ({n} of {planned} seeds)"
        ends[arm] = (last["x"].iloc[0], last["y"].mean(), looks[arm][0], note)
    return ends


def _label_ends(axes: Axes, ends: dict[str, tuple[float, float, str, str]]) -> None:
    """Each arm's name at the end of its line, pushed apart where they would overlap, with a thin leader to the line's end."""
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
        leader = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.6,
            "shrinkA": 1,
            "shrinkB": 3,
            "relpos": (0, 0.5),
        }
        axes.annotate(
            arm + note, xy=at[arm], xytext=(1.05, height), xycoords="axes fraction", textcoords="axes fraction", color=colour, va="center",
            fontsize=8.5, arrowprops=leader, annotation_clip=False,
        )  # fmt: skip


def command(argv: list[str]) -> int:
    options = parser(
        "plot_convergence",
        __doc__.splitlines()[0],
        "python analysis/plot_convergence.py --axis foresight_source --x flops",
    )
    options.add_argument("--metric", help="what to draw (the Fréchet distance that the records carry)")
    options.add_argument("--x", choices=AXES, default="epochs", help="against what (epochs)")
    options.add_argument(
        "--band",
        choices=BANDS,
        default="minmax",
        help="over seeds: least to greatest, or the t-interval of the mean",
    )
    options.add_argument(
        "--scale",
        choices=("auto", "linear", "log"),
        default="auto",
        help=f"of the metric (log beyond a factor of {LOG_FROM:g})",
    )
    options.add_argument(
        "--no-timing", action="store_true", help="no speed-up in seconds: the machine was shared"
    )
    args = options.parse_args(argv)
    for results in load(args):
        metric = args.metric or primary_metric(results.metrics)
        if metric not in results.metrics:
            raise unknown("metric", metric, results.metrics)
        stem = results.name + (f"_{file_stem(metric)}" if args.metric else "")
        save(
            draw(results, metric, args.x, args.band, args.scale),
            args.out,
            stem + (f"_{args.x}" if args.x != "epochs" else ""),
        )
        text = speedup_table(results, metric, timing=not args.no_timing)
        path = args.out / f"{stem}_speedup.md"
        path.write_text(text, encoding="utf-8")
        say(f"wrote {path}")
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
