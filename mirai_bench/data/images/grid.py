"""TODO: data.images.grid."""

from __future__ import annotations

import numpy as np


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, h, w, 3) → one RGB image, row by row, a grey line around each; small images are enlarged, missing ones are black."""
    scale, line = max(1, 32 // images.shape[1]), 1
    images = images.repeat(scale, 1).repeat(scale, 2)
    rows = -(-len(images) // columns)
    cells = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    cells[: len(images)] = images
    cells = np.pad(cells, ((0, 0), (line, line), (line, line), (0, 0)), constant_values=96)
    h, w = cells.shape[1:3]
    return cells.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)


def first_grid(images: np.ndarray, classes: int) -> np.ndarray:
    columns = min(10, classes)
    rows = 10 if images.shape[1] <= 64 else 4
    return image_grid(images[: rows * columns], columns)
