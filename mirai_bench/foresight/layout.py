"""Axis `foresight_layout`: which future cells a state looks at. One entry of LAYOUTS each.

A layout of a grid of H x W cells (T = H·W, raster order) and K heads says which cell head k of
anchor cell i looks at. Head k means one thing everywhere (an offset), so that each head can have a
projector of its own. Head 0 is always the anchor itself; a run may leave it out. A layout is a table of
integers, so it can be printed, drawn and tested by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mirai_bench.config.foresight import ForesightConfig


class Layout(NamedTuple):
    """The target of each head of each cell, and whether there is one."""

    targets: np.ndarray
    """(T, K) int64. An invalid target is written as 0."""
    valid: np.ndarray
    """(T, K) bool."""


def raster_1d(height: int, width: int, k: int) -> Layout:
    """Returns the paper's 1-D set {n, n+1, …, n+K-1} in raster order. It ends with the sequence."""
    # Offset 0 is the anchor: in the paper's notation, too, k = 1 is the state's own position.
    return _flat(height * width, np.arange(k))


def grid_2d(height: int, width: int, k: int) -> Layout:
    """Returns the K nearest cells (Euclidean) that are not in the past, ties in raster order.

    Nothing wraps: a cell beyond the edge of a row or of the grid is invalid. The paper's formula
    (Eq. 8) says neither how ties and edges are treated nor that the past is left out.
    """
    # 1. The K offsets (down, right), the nearest first. Those to the right in the anchor's own row
    #    and all in the rows below are not in the past.
    offsets = [(0, right) for right in range(width)]
    for down in range(1, height):
        offsets += [(down, right) for right in range(1 - width, width)]
    offsets.sort(key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset))
    down, right = np.array(offsets[:k]).T  # (K,) each
    # 2. The cells at these offsets from each anchor.
    row, column = np.divmod(np.arange(height * width)[:, None], width)  # (T, 1) each
    target_row = row + down  # (T, K)
    target_column = column + right
    valid = (target_row < height) & (target_column >= 0) & (target_column < width)
    return Layout(np.where(valid, target_row * width + target_column, 0), valid)


def grid_2d_flat(height: int, width: int, k: int) -> Layout:
    """Returns the official code's offsets in the flattened sequence.

    A neighbour beyond the end of a row wraps onto the next row. The official code writes the
    offsets for a width of 16, here they follow the width of the grid.
    """
    # Here, right, below, below-right, and then the rest of the 3 x 3 cells to the lower right.
    # Further heads have the offset of their index.
    nearest = [0, 1, width, width + 1, 2, width + 2, 2 * width + 2, 2 * width + 1, 2 * width]
    offsets = [*nearest, *range(len(nearest), max(k, len(nearest)))]
    return _flat(height * width, np.array(offsets[:k]))


def _flat(cells: int, offsets: np.ndarray) -> Layout:
    """Returns the layout of these offsets (K,) in the flattened sequence."""
    targets = np.arange(cells)[:, None] + offsets
    valid = targets < cells
    return Layout(np.where(valid, targets, 0), valid)


LAYOUTS: dict[str, Callable[[int, int, int], Layout]] = {
    "raster_1d": raster_1d,
    "grid_2d": grid_2d,
    "grid_2d_flat": grid_2d_flat,
}


def cells_of(config: ForesightConfig, grid: tuple[int, int]) -> Layout:
    """Returns the cells that the states of a run look at: K of them, with or without the state's own."""
    if config.has_own_cell:
        return LAYOUTS[config.layout](*grid, config.k)
    targets, valid = LAYOUTS[config.layout](*grid, config.k + 1)
    return Layout(targets[:, 1:], valid[:, 1:])
