"""Axis `foresight_layout`: which future cells a state looks at, as integer tables. Integers only: printable, drawable, testable by hand.

A table for a grid of H x W cells (T = H·W, raster order) and K heads is `targets` (T, K) int64, the cell that head k of anchor cell i
looks at, and `valid` (T, K) bool; an invalid target is written as 0. Head k means one thing everywhere (an offset), so that each head
can have a projector of its own. Head 0 is always the anchor itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    targets: np.ndarray  # (T, K) int64
    valid: np.ndarray  # (T, K) bool


def raster_1d(height: int, width: int, k: int) -> Table:
    """The paper's 1-D set {n, n+1, …, n+K-1} in raster order; it ends with the sequence."""
    return _flat(height * width, np.arange(k))


def grid_2d(height: int, width: int, k: int) -> Table:
    """The K nearest cells (Euclidean) that are not in the past, ties in raster order; nothing wraps, row and bottom edges are masked."""
    offsets = [
        (down, right) for down in range(height) for right in range(1 - width, width) if down or right >= 0
    ]
    offsets.sort(key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset))
    down, right = np.array(offsets[:k]).T  # (K)
    rows, columns = (axis.reshape(-1, 1) for axis in np.divmod(np.arange(height * width), width))
    valid = (rows + down < height) & (columns + right >= 0) & (columns + right < width)
    return Table(np.where(valid, (rows + down) * width + columns + right, 0), valid)


def grid_2d_flat(height: int, width: int, k: int) -> Table:
    """The official code's fixed offsets in the flattened sequence: a neighbour beyond the end of a row wraps onto the next row."""
    first = [0, 1, width, width + 1, 2, width + 2, 2 * width + 2, 2 * width + 1, 2 * width]
    return _flat(height * width, np.array([*first, *range(len(first), max(k, len(first)))][:k]))


def _flat(cells: int, offsets: np.ndarray) -> Table:
    targets = np.arange(cells)[:, None] + offsets
    return Table(np.where(targets < cells, targets, 0), targets < cells)


LAYOUTS: dict[str, Callable[[int, int, int], Table]] = {
    "raster_1d": raster_1d,
    "grid_2d": grid_2d,
    "grid_2d_flat": grid_2d_flat,
}
