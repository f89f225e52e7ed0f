"""The figure and the table of how the diagnostics go with the gain."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from common import BLACK, STYLE, nth_look, plain
from correlation import Arm, Correlation, least_p
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mirai_bench.results.frame import is_distance, lower_is_better
from mirai_bench.results.notes import MISSING
from mirai_bench.results.stats import CONFIDENCE, t_interval
from mirai_bench.results.writers import Document, p_value

COLUMNS = 4
CSV_COLUMNS = (
    "diagnostic,value,metric,arms,seeds,pearson,ci95_low,ci95_high,spearman,p,p_holm,"
    "within,within_ci95_low,within_ci95_high"
)


def looks_of(found: Sequence[Correlation]) -> dict[Arm, tuple[str, str]]:
    """Returns (colour, marker) of each arm, in the order of the sweeps."""
    arms = list(dict.fromkeys(arm for each in found for arm in each.arms))
    return {arm: nth_look(i) for i, arm in enumerate(arms)}


def gain_in_words(metric: str, baselines: str) -> str:
    """Returns what is drawn upwards."""
    better = "below" if lower_is_better(metric) else "above"
    what = "ln ratio to" if is_distance(metric) else "minus"
    return f"{metric}, {what} {baselines}\n({better} 0 is better)"


def draw(found: Sequence[Correlation], title: str) -> Figure:
    """Returns a figure of one metric: a panel for each value, a point with its intervals for each arm."""
    looks = looks_of(found)
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)  # rounded up
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(2, columns) * 2.6, 1.9 + 2.3 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, each in zip(grid.flat, found, strict=False):
            _draw_panel(axes, each, looks)
        for axes in grid.flat[len(found) :]:
            axes.remove()
        baselines = " or ".join(dict.fromkeys(arm.sweep.results.baseline for arm in looks))
        figure.supylabel(plain(gain_in_words(found[0].metric, baselines)), fontsize=8.5)
        figure.suptitle(plain(title), fontsize=9, x=0.01, ha="left", wrap=True)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, label=plain(arm.name))
            for arm, (colour, marker) in looks.items()
        ]
        where: dict[str, Any] = {"loc": "outside lower left", "frameon": False, "fontsize": 8}
        figure.legend(handles=handles, ncols=min(5, len(handles)), **where)
    return figure


def _draw_panel(axes: Axes, found: Correlation, looks: dict[Arm, tuple[str, str]]) -> None:
    axes.axhline(0, color=BLACK, linewidth=0.7)
    axes.axvline(0, color=BLACK, linewidth=0.7)
    for arm, changes, gains in zip(found.arms, found.changes, found.gains, strict=True):
        colour, marker = looks[arm]
        axes.plot(changes, gains, ".", color=colour, markersize=2.5, alpha=0.35)
        x, y = t_interval(changes), t_interval(gains)
        assert x is not None and y is not None, "there are two seeds or more"
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5.5, "elinewidth": 0.8}
        axes.errorbar(x.mean, y.mean, xerr=x.half, yerr=y.half, **style)
    axes.set_title(
        f"{found.diagnostic}: {found.value}\nr {correlation_text(found.pearson, found.interval)}",
        fontsize=8,
        loc="left",
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(labelsize=7.5)


def correlation_text(r: float, interval: tuple[float, float]) -> str:
    """Writes a correlation with its interval."""
    if math.isnan(r):
        return MISSING
    low, high = interval
    text = f"{r:+.2f}" if math.isnan(low) else f"{r:+.2f} [{low:+.2f}, {high:+.2f}]"
    return text.replace("-", "−")


# ---- the table


def caption(found: Sequence[Correlation], profile: str) -> str:
    """Returns the title of a figure."""
    first = found[0]
    arms = max(len(each.arms) for each in found)
    return (
        f"Do the diagnostics go with the gain? {first.metric}, profile {profile}\n"
        "across: change of the diagnostic, arm minus baseline of the same seed; point: mean of "
        "an arm with its "
        f"t-intervals; dot: a seed\nr: Pearson's over up to {arms} arms "
        f"(means over {len(first.seeds)} seeds), with a 95 % bootstrap interval over arms and seeds"
    )


def document(groups: Sequence[Sequence[Correlation]], profile: str, left_out: Sequence[str]) -> Document:
    """Returns the texts of the table: a grid for each metric, and what has to be known to read it."""
    grids = []
    for group in groups:
        header = [group[0].metric, "arms", "seeds", "r over arms", "ρ", "p", "p (Holm)", "r within arms"]
        grids.append([header, *(_texts(each) for each in group)])
    arms = [arm.name for arm in looks_of([each for group in groups for each in group])]
    fewest = min(len(each.arms) for group in groups for each in group)
    notes = [
        f"r over arms: Pearson's correlation of the mean change of the diagnostic with that of the metric, "
        f"arm minus baseline of the same seed (of a Fréchet distance the logarithm), over the arms "
        f"{', '.join(arms)}. The baseline, which takes the same number from every arm of a seed, changes no "
        "correlation and is no point. Less of a metric is better where its distance or loss is: "
        "a negative r "
        "then says that more of the diagnostic goes with a gain.",
        f"Interval: {100 * CONFIDENCE:g} % bootstrap over arms and seeds: what other arms like "
        "these with other "
        "seeds might show. In simulations it was too wide rather than too narrow. Noise of the seeds pulls r "
        "towards 0, or towards the correlation within arms.",
        f"p: by exchanging the arms. {fewest} arms cannot have a p below {least_p(fewest):.2g}. "
        "Holm: corrected "
        "over the diagnostics, for each metric. ρ: Spearman's.",
        "r within arms: over runs, with the means of arms and seeds taken out: does the run of "
        "an arm that has "
        "more of the diagnostic come out better? Interval by Fisher's transformation.",
        "A correlation over arms that were chosen says what goes together, and not what causes the gain.",
    ]
    if left_out:
        notes.append(
            f"Left out, because the baseline has no such value or too few arms do: {', '.join(left_out)}."
        )
    return Document(f"Diagnostics and the gain (profile {profile})", grids, notes)


def _texts(found: Correlation) -> list[str]:
    texts = [f"{found.diagnostic}: {found.value}", str(len(found.arms)), str(len(found.seeds))]
    texts += [
        correlation_text(found.pearson, found.interval),
        correlation_text(found.spearman, (math.nan,) * 2),
    ]
    return [*texts, p_value(found.p), p_value(found.holm), correlation_text(found.within, found.of_within)]


def comma_separated(groups: Sequence[Sequence[Correlation]]) -> str:
    """Returns the table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS.split(","))
    for each in (each for group in groups for each in group):
        line = [each.diagnostic, each.value, each.metric, len(each.arms), len(each.seeds)]
        numbers = [
            each.pearson,
            *each.interval,
            each.spearman,
            each.p,
            each.holm,
            each.within,
            *each.of_within,
        ]
        writer.writerow([*line, *(MISSING if math.isnan(number) else f"{number:.5g}" for number in numbers)])
    return out.getvalue()


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
