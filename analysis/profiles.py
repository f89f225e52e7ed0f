"""Curves of arms over layers, positions or epochs, each with the paired differences to the baseline below."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from common import STYLE, look, plain
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.frame import Results
from mirai_bench.results.stats import t_interval

if TYPE_CHECKING:
    from mirai_bench.diagnose.diagnostic import Diagnostic

COLUMNS = 3  # of panels
WIDTH = 3.3  # of a panel, in inches
LEGEND_COLUMNS = 5

Array = NDArray[np.float64]
BySeed = Mapping[int, Sequence[float]]
Curves = dict[str, BySeed]
"""For each arm and seed a curve. All have as many points."""


def known_diagnostics() -> dict[str, Diagnostic]:
    """Returns the diagnostics by name, in the order in which they are declared."""
    # Imported here, because importing torch takes seconds, and records without diagnoses do without.
    from mirai_bench.diagnose.registry import DIAGNOSTICS

    return DIAGNOSTICS


@dataclass(frozen=True)
class Panel:
    """One quantity against layers, positions or epochs."""

    title: str
    x: Sequence[float]
    xlabel: str
    curves: Curves
    references: Mapping[str, float] = field(default_factory=dict)
    """A dashed line with its name, or none."""


def layered(diagnoses: Diagnoses, diagnostic: str) -> list[str]:
    """Returns the names of the values of a diagnostic that each layer has (`name@l`)."""
    values = diagnoses.values(diagnostic)
    return list(dict.fromkeys(name.partition("@")[0] for name in values if "@" in name))


def layers_of(diagnoses: Diagnoses, diagnostic: str, name: str) -> list[int]:
    """Returns the layers in which a value is known."""
    parts = [value.partition("@") for value in diagnoses.values(diagnostic)]
    return sorted({int(layer) for base, at, layer in parts if at and base == name})


def layer_panel(
    diagnoses: Diagnoses, diagnostic: str, name: str, references: Mapping[str, float] | None = None
) -> Panel:
    """Returns the panel of a value against the layers."""
    layers = layers_of(diagnoses, diagnostic, name)
    names = [f"{name}@{layer}" for layer in layers]
    curves = value_curves(diagnoses, diagnostic, names)
    return Panel(name, layers, "layer", curves, references or {})


def value_curves(diagnoses: Diagnoses, diagnostic: str, names: Sequence[str]) -> Curves:
    """Returns the curves through some values, of the runs that have one of them; nan where one is missing."""
    curves: Curves = {}
    for arm in diagnoses.results.arms:
        found = [diagnoses.by_seed(diagnostic, arm, name) for name in names]
        seeds = sorted({seed for values in found for seed in values})
        curves[arm] = {seed: [values.get(seed, math.nan) for values in found] for seed in seeds}
    return {arm: own for arm, own in curves.items() if own}


def detail_curves(diagnoses: Diagnoses, diagnostic: str, key: str) -> Curves:
    """Returns the curves that stand in a detail, of the arms that have them."""
    curves: Curves = {}
    for arm in diagnoses.results.arms:
        details = diagnoses.details(diagnostic, arm)
        own = {seed: detail[key] for seed, detail in sorted(details.items()) if detail.get(key)}
        if own:
            curves[arm] = own
    return curves


def differences(curves: Curves, baseline: str) -> Curves:
    """Returns the curves minus the baseline's of the same seed."""
    theirs = curves.get(baseline, {})
    changes: Curves = {}
    for arm, own in curves.items():
        common = sorted(own.keys() & theirs.keys())
        if arm != baseline and common:
            changes[arm] = {seed: list(np.subtract(own[seed], theirs[seed])) for seed in common}
    return changes


# ---- drawing


def draw(diagnoses: Diagnoses, diagnostic: str, panels: Sequence[Panel], caption: str) -> Figure:
    """Returns a figure with two axes for each panel: its curves, and their differences to the baseline."""
    results = diagnoses.results
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    blocks = -(-len(panels) // columns)  # rounded up
    # A block of panels without the baseline has no differences.
    has = [
        any(differences(panel.curves, results.baseline) for panel in panels[i * columns : (i + 1) * columns])
        for i in range(blocks)
    ]
    heights = [height for one in has for height in ((2.1, 1.5) if one else (2.1,))]
    with matplotlib.rc_context(STYLE):
        size = (max(2, columns) * WIDTH, 1.5 + sum(heights))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
        used = []
        row = 0
        for block, one in enumerate(has):
            for column, panel in enumerate(panels[block * columns : (block + 1) * columns]):
                used.append(_draw_panel(grid[row, column], panel, results))
                changes = differences(panel.curves, results.baseline) if one else {}
                if changes:
                    used.append(_draw_changes(grid[row + 1, column], panel, changes, results))
            row += 2 if one else 1
        for axes in grid.flat:
            if axes not in used:
                axes.remove()
        drawn = dict.fromkeys(arm for panel in panels for arm in panel.curves)
        title(figure, diagnoses, diagnostic, caption)
        legend(figure, results, drawn)
    return figure


def _draw_panel(axes: Axes, panel: Panel, results: Results) -> Axes:
    looks = look(results)
    dashed = "".join(f" (dashed: {name})" for name in panel.references)
    axes.set_title(panel.title + dashed, fontsize=9, loc="left")
    for arm in results.arms:
        if arm in panel.curves:
            draw_curve(axes, panel.x, panel.curves[arm], *looks[arm])
    for level in panel.references.values():
        axes.plot(panel.x, np.full(len(panel.x), level), color="0.45", linestyle="--", linewidth=1)
    dress(axes, panel)
    return axes


def _draw_changes(axes: Axes, panel: Panel, changes: Curves, results: Results) -> Axes:
    looks = look(results)
    axes.axhline(0, color="black", linewidth=1)
    for arm in results.arms:
        if arm in changes:
            draw_curve(axes, panel.x, changes[arm], *looks[arm])
    dress(axes, panel)
    axes.set_ylabel(f"minus {results.baseline}", fontsize=8)
    return axes


def draw_curve(
    axes: Axes, x: Sequence[float], curves: BySeed, colour: str, marker: str, **style: Any
) -> None:
    """Draws the mean of the curves of an arm and the band of its t-interval over seeds."""
    mean, half = bands(curves.values())
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.3} | style
    axes.plot(x, mean, **look)
    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.13, linewidth=0)


def bands(curves: Iterable[Sequence[float]]) -> tuple[Array, Array]:
    """Returns the mean over curves at each point, and the half width of its t-interval (0 for one curve)."""
    points = [t_interval(values) for values in zip(*curves, strict=True)]
    mean = [point.mean if point else math.nan for point in points]
    half = [0.0 if point is None or math.isnan(point.half) else point.half for point in points]
    return np.array(mean), np.array(half)


def dress(axes: Axes, panel: Panel) -> None:
    """Labels the x axis of a panel."""
    axes.set_xlabel(panel.xlabel, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    whole_ticks(axes, panel.x)


def whole_ticks(axes: Axes, x: Iterable[float]) -> None:
    """Puts the ticks of the x axis at whole numbers if all x are whole."""
    if all(float(each).is_integer() for each in x):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def title(
    figure: Figure, diagnoses: Diagnoses, diagnostic: str, caption: str, intervals: bool = True
) -> None:
    """Writes above a figure the question of the diagnostic, what is shown, and what was measured."""
    results = diagnoses.results
    known = known_diagnostics()
    question = f" {known[diagnostic].question}" if diagnostic in known else ""
    lines = [f"{results.axis}, {diagnostic}.{question}", caption, measured(diagnoses, diagnostic, intervals)]
    text = "\n".join(line for line in lines if line)
    figure.suptitle(plain(text), fontsize=9, x=0.01, ha="left", wrap=True)


def measured(diagnoses: Diagnoses, diagnostic: str, intervals: bool) -> str:
    """Returns in words what a diagnostic was measured on."""
    own = diagnoses.of(diagnostic)
    counts = Counter(arm for arm, _ in {(each.arm, each.seed) for each in own}).values()
    fewest = min(counts)
    most = max(counts)
    epoch = diagnoses.epochs(diagnostic)[diagnoses.last_step(diagnostic)]
    images = own[0].subject["scope"].get("heldout_images")
    number = f"up to {images} held-out images, " if images else ""
    shown = "mean and 95 % t-interval" if intervals and most > 1 else "mean"
    number_of_seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    spread = f"{shown} over {number_of_seeds} {'seed' if most == 1 else 'seeds'}"
    return f"{spread}; {number}weights of epoch {epoch:g}; profile {diagnoses.results.profile}"


def legend(figure: Figure, results: Results, arms: Iterable[str]) -> None:
    """Names the arms, in the order of the sweep, below a figure."""
    looks = look(results)
    named = [arm for arm in results.arms if arm in set(arms)]
    handles = [
        Line2D([], [], color=looks[arm][0], marker=looks[arm][1], markersize=4, linewidth=1.3)
        for arm in named
    ]
    columns = min(LEGEND_COLUMNS, len(named))
    where: dict[str, Any] = {"loc": "outside lower left", "frameon": False, "fontsize": 8.5}
    figure.legend(handles, [plain(arm) for arm in named], ncols=columns, **where)


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
