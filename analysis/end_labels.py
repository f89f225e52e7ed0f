"""Names at the ends of lines, pushed apart where they would overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.text import Annotation

LINE = 0.17  # inches from one name to the next


class End(NamedTuple):
    """Where the line of an arm ends, and what stands there."""

    x: float
    y: float
    colour: str
    text: str


def label_ends(axes: Axes, ends: Sequence[End]) -> list[Annotation]:
    """Writes each text at the end of its line, with a thin leader to it. Returns them in this order.

    Texts that overlap are pushed apart.
    """
    # 1. Where the lines end, from data to the axes' own (0 … 1, 0 … 1), from the lowest to the highest.
    axes.autoscale_view()  # otherwise the limits are set when the figure is saved
    to_axes = axes.transScale + axes.transLimits
    places = [tuple(to_axes.transform((end.x, end.y))) for end in ends]
    order = sorted(range(len(ends)), key=lambda index: places[index][1])
    # 2. How far they are apart. The layout of the figure will change the height of the axes a little.
    assert axes.figure is not None
    height = axes.get_position().height * axes.figure.get_figure(root=True).get_figheight()
    apart = _pushed_apart([places[index][1] for index in order], LINE / height)
    heights = dict(zip(order, apart, strict=True))
    # 3. The texts, beside the axes.
    where: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "axes fraction", "va": "center"}
    leader = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    labels = []
    for index, end in enumerate(ends):
        style: dict[str, Any] = {"color": end.colour, "arrowprops": leader | {"color": end.colour}}
        at = (1.05, heights[index])
        labels.append(
            axes.annotate(end.text, places[index], at, fontsize=8.5, annotation_clip=False, **where, **style)
        )
    return labels


def _pushed_apart(heights: list[float], gap: float) -> list[float]:
    """Returns rising heights with a gap between neighbours, near the given ones."""
    # Neighbours that are too close give way by half of what is missing, which may bring them close
    # to the next ones: after a few rounds nothing moves any more.
    for _ in range(200):
        for i in range(len(heights) - 1):
            short = gap - (heights[i + 1] - heights[i])
            if short > 1e-9:
                heights[i] -= short / 2
                heights[i + 1] += short / 2
        # The lowest text stays above the axis, below which its ticks are labelled.
        lift = max(0.0, 0.01 - heights[0]) if heights else 0.0
        heights = [height + lift for height in heights]
    return heights


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
