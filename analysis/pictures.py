"""Colours of the states on the token grid: the same images in every column, an arm in every row."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from common import STYLE, look, plain
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.utils.errors import UserError

PICTURES = "pictures"  # the name of the diagnostic
COLOURS = 3
INCHES = 0.95  # of a picture
OUTER = 2.0  # per cent of the coordinates of a channel that are beyond its darkest and its lightest colour

Array = NDArray[np.float64]


def draw_pictures(diagnoses: Diagnoses, diagnostic: str) -> Figure:
    """Draws one seed of the arms that have it: three principal directions of all of them as colours.

    States of one seed start from the same weights, and those of each arm are centred at their own mean.
    The last cell is left white, because no state has consumed it. Raises UserError if there are none.
    """
    results = diagnoses.results
    seed = drawn_seed(diagnoses, diagnostic)
    if seed is None:
        raise UserError(f"{results.axis}: there are no pictures: diagnose the runs again")
    of_seed = {arm: diagnoses.details(diagnostic, arm).get(seed, {}) for arm in results.arms}
    shown = {arm: detail for arm, detail in of_seed.items() if detail}
    panels = {"PCA": colours({arm: states_of(detail) for arm, detail in shown.items()})}
    if all("tsne" in detail for detail in shown.values()):
        panels["t-SNE"] = {arm: np.array(detail["tsne"]) for arm, detail in shown.items()}
    return _draw_grid(diagnoses, diagnostic, seed, panels)


def drawn_seed(diagnoses: Diagnoses, diagnostic: str) -> int | None:
    """Returns the seed of which most arms have pictures, the first one of several."""
    own = [diagnoses.details(diagnostic, arm) for arm in diagnoses.results.arms]
    counts = Counter(seed for details in own for seed, detail in details.items() if detail)
    return min(counts, key=lambda seed: (-counts[seed], seed), default=None)


def without_others(diagnoses: Diagnoses) -> Diagnoses:
    """Returns the diagnoses with the pictures of the one seed that is drawn: they are most of a file."""
    seed = drawn_seed(diagnoses, PICTURES)
    found = []
    for each in diagnoses.found:
        if each.fields["diagnostic"] == PICTURES and each.seed != seed:
            found.append(replace(each, fields=each.fields | {"detail": {}}))
        else:
            found.append(each)
    return Diagnoses(diagnoses.results, found)


def states_of(detail: dict[str, Any]) -> Array:
    """Returns the centred states (N, C, D) of a run, up to the directions that were kept."""
    return np.array(detail["coordinates"]) @ np.array(detail["directions"])


def colours(states: dict[str, Array]) -> dict[str, Array]:
    """Returns the colours (N, C, 3) of each arm, between 0 and 1.

    The channels are the coordinates along the three principal directions of all arms' states together.
    """
    rows = np.concatenate([own.reshape(-1, own.shape[-1]) for own in states.values()])
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions[:COLOURS]
    # A direction and its opposite are the same: the largest entry is made positive.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1)
    directions = directions * np.sign(largest)
    low, high = np.percentile(rows @ directions.T, [OUTER, 100 - OUTER], axis=0)  # (3,) each
    return {arm: ((own @ directions.T - low) / (high - low)).clip(0, 1) for arm, own in states.items()}


def on_grid(colour: Array, rows: int, columns: int) -> Array:
    """Returns colours (C, 3) as an image (rows, columns, 3), white where no state stands."""
    image = np.ones((rows * columns, COLOURS))
    image[: len(colour)] = colour
    return image.reshape(rows, columns, COLOURS)


def _draw_grid(
    diagnoses: Diagnoses, diagnostic: str, seed: int, panels: dict[str, dict[str, Array]]
) -> Figure:
    results = diagnoses.results
    arms = list(next(iter(panels.values())))
    images = len(next(iter(panels["PCA"].values())))
    # No state stands at the last cell. Grids are square.
    side = round((next(iter(panels["PCA"].values())).shape[1] + 1) ** 0.5)
    labels = diagnoses.details(diagnostic, arms[0])[seed]["labels"]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        height = 1.2 + INCHES * len(arms)
        figure = Figure(figsize=(1.3 + INCHES * images * len(panels), height), layout="constrained")
        parts = np.atleast_1d(np.asarray(figure.subfigures(1, len(panels)), dtype=object))
        for part, (name, own) in zip(parts, panels.items(), strict=True):
            grid = part.subplots(len(arms), images, squeeze=False)
            for row, arm in enumerate(arms):
                for column in range(images):
                    axes = grid[row, column]
                    axes.imshow(on_grid(own[arm][column], side, side), interpolation="nearest")
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set_visible(False)
                    if row == 0:
                        axes.set_title(f"class {labels[column]}", fontsize=7.5)
                of_row: dict[str, Any] = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8.5}
                grid[row, 0].set_ylabel(plain(arm), color=look(results)[arm][0], **of_row)
            part.supxlabel(name, fontsize=9)
        epoch = diagnoses.epochs(diagnostic)[diagnoses.last_step(diagnostic)]
        text = (
            f"{results.axis}, {diagnostic}: states of the middle layer as colours, the same "
            "held-out images in "
            "every row\nPCA: three principal directions of all arms together; the last cell has "
            "no state; seed "
            f"{seed}, weights of epoch {epoch:g}; profile {results.profile}"
        )
        figure.suptitle(plain(text), fontsize=9, x=0.01, ha="left", wrap=True)
    return figure


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
