"""The figure of gradient interference: cosines beside what noise leaves of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from common import STYLE, look, plain
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from profiles import draw_curve, title, whole_ticks

from mirai_bench.results.diagnoses import Diagnoses

HEADS = "viridis"  # colours of the heads of foresight


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


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
