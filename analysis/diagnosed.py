"""The figure of each diagnostic: what it is drawn from, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from common import STYLE, draw_change, look, plain
from interference import draw_gradients
from maps import draw_maps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pictures import draw_pictures
from profiles import (
    COLUMNS,
    WIDTH,
    Curves,
    Panel,
    detail_curves,
    draw,
    layer_panel,
    layered,
    title,
    value_curves,
)

from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.stats import t_interval

CHANCE = "even attention"


# ---- against layers


def draw_layers(diagnoses: Diagnoses, diagnostic: str) -> Figure | None:
    """Draws every value that each layer has, or nothing if there is none."""
    panels = [layer_panel(diagnoses, diagnostic, name) for name in layered(diagnoses, diagnostic)]
    return draw(diagnoses, diagnostic, panels, "") if panels else None


def draw_attention(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws where the blocks look, beside even attention to all that is visible."""
    even = diagnoses.of(diagnostic)[0].fields["detail"]["even"]
    panels = []
    for name in layered(diagnoses, diagnostic):
        references = {CHANCE: even[name]} if name in even else {}
        panels.append(layer_panel(diagnoses, diagnostic, name, references))
    return draw(diagnoses, diagnostic, panels, "where each block looks, mean over its heads")


# ---- against the position


def draw_exposure(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws the gap by the length of the prefix, and beside it entropy and loss on real images."""
    names = [name for name in diagnoses.values(diagnostic) if name.startswith("gap_")]
    eighths = [float(name.removeprefix("gap_")) for name in names]
    where = "eighth of the positions"
    gap = value_curves(diagnoses, diagnostic, names)
    panels = [Panel("entropy gap, bits per token", eighths, where, gap, {"none": 0.0})]
    for key, what in (("real", "entropy after real images, bits"), ("loss", "loss on real images, bits")):
        curves = detail_curves(diagnoses, diagnostic, key)
        by_eighth: Curves = {
            arm: {seed: averaged(values, len(names)) for seed, values in own.items()}
            for arm, own in curves.items()
        }
        panels.append(Panel(what, eighths, where, by_eighth))
    return draw(diagnoses, diagnostic, panels, "gap: entropy after own samples minus after real images")


def draw_sequence(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws the accuracy of the class probe against the tokens that the state has consumed."""
    names = [name for name in diagnoses.values(diagnostic) if name.removeprefix("accuracy_").isdigit()]
    detail = diagnoses.of(diagnostic)[0].fields["detail"]
    curves = value_curves(diagnoses, diagnostic, names)
    chance = {"the most frequent class": detail["most_frequent"]}
    panel = Panel("accuracy", detail["consumed"], "tokens that the state has consumed", curves, chance)
    return draw(diagnoses, diagnostic, [panel], "class null, linear probe of the middle layer")


def averaged(values: Sequence[float], parts: int) -> list[float]:
    """Returns the means of so many parts of equal length, as nearly as they can be."""
    return [float(part.mean()) for part in np.array_split(np.asarray(values), parts)]


# ---- one number for each arm


def draw_absorption(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws how well head, ridge and identity align, and what the head does beyond ridge."""
    kinds = {"identity": ("s", False), "ridge": ("^", False), "head": ("o", True)}
    caption = "cosine to the target by the states as they are, by the best linear map (ridge), by the head"
    labels = ("mean cosine to the target", "head minus ridge\n(right of 0: more than a linear map)")
    return _draw_kinds(diagnoses, diagnostic, kinds, "absorbed", labels, caption)


def draw_triviality(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws the loss of constants beside the trained one, and the share that the heads remove."""
    kinds = {"constant": ("s", False), "constant_center": ("^", False), "loss": ("o", True)}
    caption = (
        "foresight loss of the best constant of each cell, the same with target_norm: center, "
        "and the trained loss"
    )
    labels = ("foresight loss on held-out images", "share of the constant's loss\nthat the heads remove")
    return _draw_kinds(diagnoses, diagnostic, kinds, "removed", labels, caption)


def _draw_kinds(
    diagnoses: Diagnoses,
    diagnostic: str,
    kinds: dict[str, tuple[str, bool]],
    outcome: str,
    labels: tuple[str, str],
    caption: str,
) -> Figure:
    """Draws some values of each arm in one pair of axes, and one value beside them.

    `kinds` has the marker of each value, and whether it is filled.
    """
    results = diagnoses.results
    arms = [arm for arm in results.arms if diagnoses.by_seed(diagnostic, arm, outcome)]
    offsets = np.linspace(0.22, -0.22, len(kinds))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.8 + 0.42 * len(arms)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        right.axvline(0, color="black", linewidth=1)
        for place, arm in enumerate(arms):
            colour, marker = look(results)[arm]
            for offset, (name, (shape, filled)) in zip(offsets, kinds.items(), strict=True):
                found = t_interval(diagnoses.by_seed(diagnostic, arm, name).values())
                if found is not None:
                    draw_change(left, place + float(offset), found, colour, shape, filled)
            found = t_interval(diagnoses.by_seed(diagnostic, arm, outcome).values())
            assert found is not None, "only such arms are drawn"
            draw_change(right, place, found, colour, marker)
        left.set_yticks(range(len(arms)), [plain(arm) for arm in arms])
        left.set_ylim(len(arms) - 0.5, -0.5)
        for axes, label in zip((left, right), labels, strict=True):
            axes.set_xlabel(label, fontsize=8.5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        handles = [
            Line2D(
                [], [], color="black", marker=shape, mfc=None if filled else "white", linestyle="", label=name
            )
            for name, (shape, filled) in kinds.items()
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
        title(figure, diagnoses, diagnostic, caption)
    return figure


def draw_headlines(diagnoses: Diagnoses, diagnostic: str, names: Sequence[str]) -> Figure:
    """Draws values that have no layers: for each its arms, and the differences to the baseline."""
    results = diagnoses.results
    arms = results.arms
    columns = min(COLUMNS, len(names))
    blocks = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        size = (max(2, columns) * WIDTH + 0.8, 0.9 + blocks * 2 * (0.5 + 0.22 * len(arms)))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(2 * blocks, columns, squeeze=False, sharey=True)
        for axes in grid.flat:
            axes.set_visible(False)
        for number, name in enumerate(names):
            block, column = divmod(number, columns)
            upper, lower = grid[2 * block, column], grid[2 * block + 1, column]
            _draw_arms(upper, diagnoses, diagnostic, name)
            lower.axvline(0, color="black", linewidth=1)
            for place, arm in enumerate(arms):
                change = diagnoses.change(diagnostic, arm, name) if arm != results.baseline else None
                if change is not None:
                    draw_change(lower, place, change, *look(results)[arm])
                    lower.set_visible(True)
            lower.set_xlabel(f"{name}, minus {results.baseline}", fontsize=8)
            for axes in (upper, lower):
                axes.tick_params(labelsize=8)
        grid[0, 0].set_yticks(range(len(arms)), [plain(arm) for arm in arms])
        grid[0, 0].set_ylim(len(arms) - 0.5, -0.5)
        title(figure, diagnoses, diagnostic, "arms above, paired differences to the baseline below")
    return figure


def _draw_arms(axes: Axes, diagnoses: Diagnoses, diagnostic: str, name: str) -> None:
    axes.set_visible(True)
    axes.set_xlabel(name, fontsize=8)
    for place, arm in enumerate(diagnoses.results.arms):
        found = t_interval(diagnoses.by_seed(diagnostic, arm, name).values())
        if found is not None:
            draw_change(axes, place, found, *look(diagnoses.results)[arm])


# ---- all of them

FIGURES: dict[str, Callable[[Diagnoses, str], Figure]] = {
    "foresight_map": draw_maps,
    "gradients": draw_gradients,
    "absorption": draw_absorption,
    "attention": draw_attention,
    "exposure": draw_exposure,
    "pictures": draw_pictures,
    "sequence_probe": draw_sequence,
    "triviality": draw_triviality,
}
# Those whose values are drawn against the layers besides.
WITH_LAYERS = ("foresight_map", "gradients")


def draw_diagnostic(diagnoses: Diagnoses, diagnostic: str) -> dict[str, Figure]:
    """Returns the figures of a diagnostic, by what is added to the name of their files.

    It is its own, or that of its values against the layers, or else arm by arm.
    """
    own = FIGURES.get(diagnostic)
    figures = {} if own is None else {"": own(diagnoses, diagnostic)}
    if own is None or diagnostic in WITH_LAYERS:
        layers = draw_layers(diagnoses, diagnostic)
        if layers is not None:
            figures["_layers" if figures else ""] = layers
    names = diagnoses.values(diagnostic)
    return figures or ({"": draw_headlines(diagnoses, diagnostic, names)} if names else {})


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
