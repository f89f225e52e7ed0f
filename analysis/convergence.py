"""The figure of a metric along training: curves, and below them what each arm changes, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from common import STYLE, look, percent_axis, plain
from end_labels import End, label_ends
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ticks import cost_axis, metric_axis

from mirai_bench.results.cost import AXES
from mirai_bench.results.frame import Results, is_distance, lower_is_better, refuse_mixed_protocols
from mirai_bench.results.paper import is_papers, paper_size, read_paper
from mirai_bench.results.stats import Estimate, paired, t_interval

ONE_PANEL = 6  # arms; more than these cannot be told apart in one panel
MOST_BANDS = 3  # in one panel; more of them hide each other
WIDTHS = {True: 8.0, False: 9.0}  # inches, of a figure with one panel and with several
PANEL = 2.1  # least width of a panel, in inches
MOST_COLUMNS = 4  # of panels
BETWEEN = 0.012  # between the markers of two arms at one evaluation, as a share of the width

Looks = dict[str, tuple[str, str]]  # (colour, marker) of each arm


def t_band(values: Iterable[float]) -> tuple[float, float]:
    """Returns the ends of the t-interval of the mean, or the mean if it has none."""
    # Seaborn calls this with the values of all seeds at one x.
    estimate = t_interval(values)
    assert estimate is not None, "seaborn asks where there are values"
    if estimate.n == 1:
        return estimate.mean, estimate.mean
    return estimate.low, estimate.high


SEEDS = "seeds"
# For each name seaborn's `errorbar`, and what the figure says of it.
BANDS: dict[str, tuple[Any, str]] = {
    SEEDS: (None, "thin lines: seeds"),
    "minmax": (("pi", 100), "band: least to greatest seed"),
    "t": (t_band, "band: 95 % t-interval of the mean over seeds"),
}


# ---- what is drawn


def tidy(results: Results, metric: str, x: str) -> pd.DataFrame:
    """Returns the points of all lines: arm, seed, epoch, x, y.

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
    return frame[["arm", "seed", "epoch"]].assign(x=mean_x, y=frame[metric])


def changes(frame: pd.DataFrame, arm: str, baseline: str, in_log: bool) -> list[tuple[float, Estimate]]:
    """Returns (x, difference to the baseline) at each evaluation that both have, paired by seed."""
    found = []
    theirs = frame[frame["arm"] == baseline]
    for epoch, own in frame[frame["arm"] == arm].groupby("epoch"):
        same = theirs[theirs["epoch"] == epoch]
        values = [dict(zip(each["seed"], each["y"], strict=True)) for each in (own, same)]
        change = paired(values[0], values[1], in_log=in_log)
        if change is not None:
            found.append((float(own["x"].iloc[0]), change))
    return found


# ---- the figure


class Panel(NamedTuple):
    """A pair of axes, one above the other, and the arms in them."""

    arms: list[str]
    curves: Axes
    changes: Axes | None


def draw(
    results: Results, metric: str, x: str, band: str = "auto", scale: str = "auto", width: float | None = None
) -> Figure:
    """Returns the figure. `band` is auto or one of BANDS, `scale` linear, log or auto, `width` in inches."""
    # 1. What is drawn where.
    refuse_mixed_protocols(results)
    frame = tidy(results, metric, x)
    groups = [results.arms]
    if len(results.arms) > ONE_PANEL:
        groups = [[results.baseline, arm] for arm in results.arms if arm != results.baseline]
    if band == "auto":
        band = SEEDS if len(groups[0]) > MOST_BANDS else "minmax"
    looks = look(results)
    # The paper's own curves are comparable under its own profile only.
    is_shown = is_papers(results) and metric == "FID" and x == "epochs"
    paper = papers_curves(results) if is_shown else {}
    with matplotlib.rc_context(STYLE):
        # 2. The lines. The axes come last: if one is logarithmic, seaborn draws geometric means.
        figure, panels = _laid_out(groups, results.baseline, width or WIDTHS[len(groups) == 1])
        for panel in panels:
            _draw_curves(panel, results.arms, frame, looks, band)
            _draw_changes(panel, results, frame, looks, is_distance(metric))
            for arm in paper.keys() & set(panel.arms):
                line: dict[str, Any] = {"color": looks[arm][0], "linestyle": "--", "linewidth": 1}
                with of_arm(panel.curves, results.arms.index(arm)):
                    panel.curves.plot(*paper[arm], **line, marker="o", mfc="none", ms=4)
        # 3. The axes.
        for panel in panels:
            panel.curves.set(xlabel="", ylabel="")
        metric_axis(panels[0].curves, metric, scale, frame["y"])
        unit = cost_axis(panels[0].curves, x, frame["x"])
        if panels[0].changes is not None and is_distance(metric):
            percent_axis(panels[0].changes, "y", most=6 if len(panels) == 1 else 4)
        # 4. The words.
        _name_axes(panels, results, frame, metric)
        if len(panels) == 1:
            _name_lines(panels[0], results, frame, looks)
        figure.supxlabel(f"{AXES[x][1]}{unit}", fontsize=9)
        text = caption(results, band, panels, bool(paper))
        figure.suptitle(plain(text), fontsize=9, x=0.01, ha="left", wrap=True)
    return figure


def _laid_out(groups: list[list[str]], baseline: str, width: float) -> tuple[Figure, list[Panel]]:
    """Returns an empty figure with a panel for each group of arms."""
    # 1. The size. Below the curves are the changes, if there is anything to compare.
    compared = baseline in groups[0] and len(groups[0]) > 1
    columns = min(len(groups), MOST_COLUMNS, max(1, int(width / PANEL)))
    rows = -(-len(groups) // columns)  # rounded up
    high = min(3.6, 0.48 * width) if len(groups) == 1 else 1.5
    heights = [high, 0.5 * high] if compared else [high]
    size = (width, 0.9 + rows * (sum(heights) + 0.3))
    figure = Figure(figsize=size, layout="constrained")
    layout: dict[str, Any] = {"height_ratios": heights * rows, "sharex": True, "squeeze": False}
    grid = figure.subplots(rows * len(heights), columns, **layout)
    # 2. The panels, which share their axes. The lowest of each column has the numbers of x.
    panels = []
    for number, arms in enumerate(groups):
        row, column = divmod(number, columns)
        own = grid[row * len(heights) : (row + 1) * len(heights), column]
        for first, axes in zip(grid[: len(heights), 0], own, strict=True):
            if axes is not first:
                axes.sharey(first)
            axes.tick_params(labelleft=column == 0, labelbottom=False)
        own[-1].tick_params(labelbottom=number + columns >= len(groups))
        panels.append(Panel(arms, own[0], own[1] if compared else None))
    for axes in (
        grid.reshape(rows, len(heights), columns).swapaxes(1, 2).reshape(-1)[len(groups) * len(heights) :]
    ):
        axes.remove()
    return figure, panels


@contextmanager
def of_arm(axes: Axes, number: int) -> Iterator[None]:
    """Gives everything that the block adds to the axes an id in an SVG file: arm-NUMBER-….

    A page can hide an arm by them. No two are the same.
    """
    before = set(axes.get_children())
    yield
    assert axes.figure is not None
    place = axes.figure.axes.index(axes)
    new = [artist for artist in axes.get_children() if artist not in before]
    for index, artist in enumerate(new, start=len(before)):
        artist.set_gid(f"arm-{number}-{place}-{index}")


def _draw_curves(panel: Panel, order: Sequence[str], frame: pd.DataFrame, looks: Looks, band: str) -> None:
    for arm in panel.arms:
        points = frame[frame["arm"] == arm]
        if points.empty:
            continue
        colour, marker = looks[arm]
        drawn: dict[str, Any] = {"data": points, "x": "x", "y": "y", "color": colour, "ax": panel.curves}
        with of_arm(panel.curves, order.index(arm)):
            if band == SEEDS:
                sns.lineplot(**drawn, units="seed", estimator=None, linewidth=0.6, alpha=0.3)
            thick = {"linewidth": 2.0 if band == SEEDS else 1.5, "marker": marker, "markersize": 5}
            style: dict[str, Any] = {"errorbar": BANDS[band][0], "markeredgewidth": 0} | thick
            if band != SEEDS:
                style["err_kws"] = {"alpha": 0.15, "linewidth": 0}
            sns.lineplot(**drawn, **style)


def _draw_changes(panel: Panel, results: Results, frame: pd.DataFrame, looks: Looks, in_log: bool) -> None:
    if panel.changes is None:
        return
    panel.changes.axhline(0, color="black", linewidth=1)
    others = [arm for arm in panel.arms if arm != results.baseline]
    span = frame["x"].max() - frame["x"].min()
    for index, arm in enumerate(others):
        found = changes(frame, arm, results.baseline, in_log)
        if not found:
            continue
        shift = BETWEEN * span * (index - (len(others) - 1) / 2)
        places = [place + shift for place, _ in found]
        means = [change.mean for _, change in found]
        halves = np.nan_to_num([change.half for _, change in found])  # one seed has no interval
        colour, marker = looks[arm]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "capsize": 2}
        with of_arm(panel.changes, results.arms.index(arm)):
            panel.changes.errorbar(places, means, yerr=halves, linewidth=0.8, **style)


def papers_curves(results: Results) -> dict[str, tuple[list[int], list[float]]]:
    """Returns (epochs, FID) of each arm for which the paper has values."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    rows = read_paper(results.axis, paper_size(results))
    for row in sorted(rows, key=lambda row: (int(row["epochs"]), float(row["value"]))):
        if row["metric"] == "FID" and row["arm"] in results.arms:
            epochs, values = curves.setdefault(row["arm"], ([], []))
            epochs.append(int(row["epochs"]))
            values.append(float(row["value"]))
    return curves


# ---- words


def caption(results: Results, band: str, panels: Sequence[Panel], paper: bool) -> str:
    """Returns the question of the sweep, and how the figure is read."""
    seeds = max(len(results.seeds(arm)) for arm in results.arms)
    line = "line: mean over 1 seed" if seeds == 1 else f"line: mean over {seeds} seeds"
    parts = [line] if seeds == 1 else [line, BANDS[band][1]]
    if panels[0].changes is not None:
        parts.append("below: change at the same evaluation, paired by seed, with its 95 % t-interval")
    parts.append(f"profile {results.profile}")
    if len(panels) > 1:
        parts.append(f"black: {results.baseline}")
    if paper:
        parts.append("dashed, open circles: the paper's single runs")
    return f"{results.axis}: {results.question}\n{'; '.join(parts)}"


def with_missing(results: Results, frame: pd.DataFrame, arm: str) -> str:
    """Returns the name of an arm, and says if seeds of it are missing."""
    n = frame.loc[frame["arm"] == arm, "seed"].nunique()
    planned = len(results.seeds(arm))
    return arm if n == planned else f"{arm} ({n} of {planned} seeds)"


def _name_axes(panels: Sequence[Panel], results: Results, frame: pd.DataFrame, metric: str) -> None:
    """Labels the axes of the first column. Several panels have the names of their arms on top."""
    looks = look(results)
    better = "lower" if lower_is_better(metric) else "higher"
    for panel in panels:
        if panel.curves.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            panel.curves.set_ylabel(f"{metric}\n({better} is better)")
            if panel.changes is not None:
                panel.changes.set_ylabel(f"Δ to\n{results.baseline}")
        if len(panels) > 1:
            arm = panel.arms[1]
            name = plain(with_missing(results, frame, arm))
            title = panel.curves.set_title(name, fontsize=8.5, color=looks[arm][0], loc="left")
            title.set_gid(f"arm-{results.arms.index(arm)}-title")


def _name_lines(panel: Panel, results: Results, frame: pd.DataFrame, looks: Looks) -> None:
    """Writes the names of the arms beside the ends of their lines, and says if seeds are missing."""
    ends = {}
    for name, own in frame.groupby("arm"):
        arm = str(name)
        last = own[own["x"] == own["x"].max()]
        text = plain(with_missing(results, frame, arm))
        ends[arm] = End(last["x"].iloc[0], last["y"].mean(), looks[arm][0], text)
    for arm, label in zip(ends, label_ends(panel.curves, list(ends.values())), strict=True):
        number = results.arms.index(arm)
        label.set_gid(f"arm-{number}-label")
        assert label.arrow_patch is not None
        label.arrow_patch.set_gid(f"arm-{number}-leader")


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
