"""The foresight map: offsets on the grid, for each layer and arm, and the differences to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from common import STYLE, look, plain
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from profiles import title

from mirai_bench.results.diagnoses import Diagnoses

GAINED = "RdBu_r"  # white is 0, red is more
LOST = "Greys"
KEPT = "PuOr_r"  # white is 0, orange is more
FORESIGHT = "bits known of a later token, beyond the visible ones"
INCHES = 0.85  # of a map

Array = NDArray[np.float64]
Maps = dict[str, dict[int, Array]]
"""For each arm and seed the bits (layers, offsets)."""


def draw_maps(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws an arm in every row, on the left what its layers know, on the right what they know more.

    Later cells have the bits that the state knows beyond the visible tokens; those from the state's own
    cell back, which are visible, the bits that it does not know of them.
    """
    results = diagnoses.results
    maps = maps_of(diagnoses, diagnostic)
    offsets = [(down, right) for down, right in diagnoses.of(diagnostic)[0].fields["detail"]["offsets"]]
    later = np.array([offset > (0, 0) for offset in offsets])
    means = {arm: np.mean(list(own.values()), axis=0) for arm, own in maps.items()}
    changes = {arm: change_of(own, maps.get(results.baseline, {})) for arm, own in maps.items()}
    layers = len(next(iter(means.values())))
    scales = {
        "gained": largest([mean[:, later] for mean in means.values()]),
        "lost": largest([mean[:, ~later] for mean in means.values()]),
        "more": largest([change[:, later] for change in changes.values() if change is not None]),
        "kept": largest([change[:, ~later] for change in changes.values() if change is not None]),
    }
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        size = (1.4 + 2 * layers * INCHES, 2.4 + INCHES * len(maps))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(maps), 2 * layers, squeeze=False)
        for row, arm in enumerate(maps):
            for layer in range(layers):
                known, more = grid[row, layer], grid[row, layers + layer]
                mean = means[arm][layer]
                _draw_map(known, offsets, np.where(later, mean, np.nan), GAINED, scales["gained"])
                _draw_map(known, offsets, np.where(later, np.nan, -mean), LOST, scales["lost"])
                change = changes[arm]
                if arm == results.baseline or change is None:
                    more.set_axis_off()
                else:
                    _draw_map(more, offsets, np.where(later, change[layer], np.nan), GAINED, scales["more"])
                    _draw_map(more, offsets, np.where(later, np.nan, change[layer]), KEPT, scales["kept"])
                if row == 0:
                    known.set_title(f"layer {layer}", fontsize=8)
                if row == min(1, len(maps) - 1):
                    more.set_title(f"layer {layer}", fontsize=8)
            of_row: dict[str, Any] = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8.5}
            grid[row, 0].set_ylabel(plain(arm), color=look(results)[arm][0], **of_row)
        known, more = grid[:, :layers], grid[:, layers:]
        minus = f"minus {results.baseline}"
        _add_bar(figure, known, LOST, (0, scales["lost"]), "bits not known of a visible token")
        _add_bar(figure, more, KEPT, (-scales["kept"], scales["kept"]), f"visible token: bits known, {minus}")
        _add_bar(figure, known, GAINED, (-scales["gained"], scales["gained"]), FORESIGHT)
        _add_bar(figure, more, GAINED, (-scales["more"], scales["more"]), f"later token: bits known, {minus}")
        caption = (
            "each square: offsets of the token that is read, rows down and columns to the right of the "
            "state's own cell (dot)\n"
            "left: what the states know; right: the difference to the baseline of the same seed"
        )
        title(figure, diagnoses, diagnostic, caption, intervals=False)
    return figure


def maps_of(diagnoses: Diagnoses, diagnostic: str) -> Maps:
    """Returns the maps of all arms that have one."""
    maps: Maps = {}
    for arm in diagnoses.results.arms:
        details = diagnoses.details(diagnostic, arm)
        if details:
            maps[arm] = {seed: np.array(detail["bits"]) for seed, detail in sorted(details.items())}
    return maps


def change_of(ours: dict[int, Array], theirs: dict[int, Array]) -> Array | None:
    """Returns the mean difference over the seeds that both have, or None."""
    seeds = sorted(ours.keys() & theirs.keys())
    return np.asarray(np.mean([ours[seed] - theirs[seed] for seed in seeds], axis=0)) if seeds else None


def largest(maps: Sequence[Array]) -> float:
    """Returns the largest absolute number, from which on a colour is full."""
    return max((float(np.abs(one).max()) for one in maps if one.size), default=0.0) or 1.0


def _draw_map(
    axes: Axes, offsets: Sequence[tuple[int, int]], bits: Array, colours: str, scale: float
) -> None:
    """Draws bits (offsets) at their places. What is nan stays as it is."""
    reach = max(abs(step) for offset in offsets for step in offset)
    image = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
    for (down, right), value in zip(offsets, bits, strict=True):
        image[down + reach, right + reach] = value
    norm = Normalize(0, scale) if colours == LOST else Normalize(-scale, scale)
    axes.imshow(image, cmap=colours, norm=norm, interpolation="nearest")
    axes.plot(reach, reach, "o", color="black", markersize=2.5)
    axes.set(xticks=[], yticks=[])


def _add_bar(
    figure: Figure, axes: NDArray[Any], colours: str, limits: tuple[float, float], label: str
) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(*limits), colours), ax=axes, location="bottom", aspect=30, shrink=0.9
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7.5)


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
