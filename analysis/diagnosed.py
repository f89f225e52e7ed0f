"""The figure of each diagnostic: what it is drawn from, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from common import STYLE, draw_change, look, plain
from maps import draw_maps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pictures import draw_pictures
from profiles import (
    COLUMNS,
    WIDTH,
    Curves,
    Panel,
    detail_curves,
    draw,
    draw_curve,
    layer_panel,
    layered,
    title,
    value_curves,
    whole_ticks,
)

from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.stats import t_interval

CHANCE = "even attention"
HEADS = "viridis"  # colours of the heads of foresight


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


def averaged(values: Sequence[float], parts: int) -> list[float]:
    """Returns the means of so many parts of equal length, as nearly as they can be."""
    return [float(part.mean()) for part in np.array_split(np.asarray(values), parts)]


# ---- gradients


def draw_gradients(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws cosines block by block, with the noise ceiling in the same axes, head by head, and over training.

    A panel is an arm that has a foresight gradient.
    """
    arms = [arm for arm in diagnoses.results.arms if diagnoses.by_seed(diagnostic, arm, "cos")]
    epochs = list(diagnoses.epochs(diagnostic).values())
    rows: list[Callable[[Axes, Diagnoses, str, str], None]] = [_draw_blocks, _draw_heads]
    if len(epochs) > 1:
        rows.append(_draw_training)
    caption = (
        "first row: cosine of the gradients of next-token prediction (NTP) and foresight on the "
        "shared parameters\n"
        "grey: NTP with NTP on two halves of a batch: what noise leaves of a cosine of 1, to be "
        "compared with the "
        "dashed line (dotted: the baseline's)\nsecond row: each head of foresight with NTP, mean over seeds"
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(2, len(arms)) * 2.5 + 0.4, 1.6 + 2.2 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), max(1, len(arms)), sharey="row", squeeze=False)
        for column, arm in enumerate(arms):
            grid[0, column].set_title(
                plain(arm), fontsize=9, loc="left", color=look(diagnoses.results)[arm][0]
            )
            for row, fill in enumerate(rows):
                axes = grid[row, column]
                axes.axhline(0, color="black", linewidth=1)
                axes.tick_params(labelsize=8)
                fill(axes, diagnoses, diagnostic, arm)
        for row in range(len(rows)):
            grid[row, 0].set_ylabel("cosine", fontsize=8)
        title(figure, diagnoses, diagnostic, caption)
        handles = [
            Line2D([], [], color="black", marker="o", markersize=4, label="NTP and foresight, same batch"),
            Line2D([], [], color="black", linestyle="--", label="NTP and foresight, on different halves"),
            Line2D([], [], color="0.55", label="NTP and NTP, on different halves (ceiling)"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _blocks(
    diagnoses: Diagnoses, diagnostic: str, arm: str, name: str
) -> tuple[list[int], dict[int, list[float]]]:
    """Returns the blocks in which an arm has a value, and its curve for each seed."""
    parts = [value.partition("@") for value in diagnoses.values(diagnostic)]
    blocks = sorted(int(block) for base, at, block in parts if at and base == name)
    known = {block: diagnoses.by_seed(diagnostic, arm, f"{name}@{block}") for block in blocks}
    known = {block: values for block, values in known.items() if values}
    seeds = sorted({seed for values in known.values() for seed in values})
    return list(known), {seed: [known[block][seed] for block in known] for seed in seeds}


def _draw_blocks(axes: Axes, diagnoses: Diagnoses, diagnostic: str, arm: str) -> None:
    colour, marker = look(diagnoses.results)[arm]
    kinds: dict[str, dict[str, Any]] = {
        "ceiling": {"marker": "", "linestyle": "-"},
        "cross": {"marker": "", "linestyle": "--"},
        "cos": {"marker": marker},
    }
    for name, style in kinds.items():
        blocks, curves = _blocks(diagnoses, diagnostic, arm, name)
        own = {"colour": "0.55" if name == "ceiling" else colour} | {"marker": style.pop("marker")}
        draw_curve(axes, blocks, curves, **own, **style)
    blocks, curves = _blocks(diagnoses, diagnostic, diagnoses.results.baseline, "ceiling")
    if blocks:
        draw_curve(axes, blocks, curves, "black", "", linestyle=":", linewidth=1)
    whole_ticks(axes, blocks)
    axes.set_xlabel("block (0: embeddings)", fontsize=8)


def _draw_heads(axes: Axes, diagnoses: Diagnoses, diagnostic: str, arm: str) -> None:
    details = list(diagnoses.details(diagnostic, arm).values())
    heads = len(details[0]["heads"])
    colours = matplotlib.colormaps[HEADS](np.linspace(0, 0.9, heads))
    for head, colour in enumerate(colours):
        curves = {seed: detail["heads"][head] for seed, detail in enumerate(details)}
        label = str(head + 1) if heads > 1 else "the only head"
        mean = np.mean(list(curves.values()), axis=0)
        axes.plot(range(len(mean)), mean, color=tuple(colour), linewidth=1.2, label=label)
    axes.legend(fontsize=6.5, frameon=False, ncols=3, title="head", title_fontsize=6.5, handlelength=1.2)
    whole_ticks(axes, range(len(details[0]["heads"][0])))
    axes.set_xlabel("block (0: embeddings)", fontsize=8)


def _draw_training(axes: Axes, diagnoses: Diagnoses, diagnostic: str, arm: str) -> None:
    colour, marker = look(diagnoses.results)[arm]
    kinds = {"ceiling": ("0.55", "", "-"), "cross": (colour, "", "--"), "cos": (colour, marker, "-")}
    for name, (of_line, of_point, line) in kinds.items():
        epochs, curves = [], []
        for step, epoch in diagnoses.epochs(diagnostic).items():
            values = diagnoses.by_seed(diagnostic, arm, name, step)
            if values:
                epochs.append(epoch)
                curves.append(values)
        common = sorted(set.intersection(*(set(values) for values in curves)))
        by_seed = {seed: [values[seed] for values in curves] for seed in common}
        draw_curve(axes, epochs, by_seed, of_line, of_point, linestyle=line)
    axes.set_xlabel("epoch (all shared parameters)", fontsize=8)


# ---- one number for each arm


def draw_absorption(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws how well head, ridge and identity align, and what the head does beyond ridge."""
    results = diagnoses.results
    arms = [arm for arm in results.arms if diagnoses.by_seed(diagnostic, arm, "head")]
    kinds = {"identity": ("s", "white"), "ridge": ("^", "white"), "head": ("o", None)}
    caption = "cosine to the target by the states as they are, by the best linear map (ridge), by the head"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.7 + 0.42 * len(arms)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        right.axvline(0, color="black", linewidth=1)
        for place, arm in enumerate(arms):
            colour, marker = look(results)[arm]
            for offset, (name, (shape, face)) in zip((0.22, 0, -0.22), kinds.items(), strict=True):
                found = t_interval(diagnoses.by_seed(diagnostic, arm, name).values())
                if found is not None:
                    reach = None if math.isnan(found.half) else found.half
                    style: dict[str, Any] = {"color": colour, "mfc": face or colour, "markersize": 5.5}
                    left.errorbar(found.mean, place + offset, xerr=reach, marker=shape, capsize=2, **style)
            absorbed = t_interval(diagnoses.by_seed(diagnostic, arm, "absorbed").values())
            if absorbed is not None:
                draw_change(right, place, absorbed, colour, marker)
        left.set_yticks(range(len(arms)), [plain(arm) for arm in arms])
        left.set_ylim(len(arms) - 0.5, -0.5)
        left.set_xlabel("mean cosine to the target, held-out images", fontsize=8.5)
        right.set_xlabel(
            "head minus ridge\n(right of 0: the head aligns more than a linear map)", fontsize=8.5
        )
        handles = [
            Line2D([], [], color="black", marker=shape, mfc=face or "black", linestyle="", label=name)
            for name, (shape, face) in kinds.items()
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
    return figures or {"": draw_headlines(diagnoses, diagnostic, diagnoses.values(diagnostic))}
