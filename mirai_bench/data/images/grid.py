"""Grids of images: many small images as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mirai_bench.utils.files import atomic

FEWEST_PIXELS = 32  # side of a cell: smaller images are enlarged to about that
GREY = 96  # of the lines around the cells


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns one RGB picture of the images uint8 (N, h, w, 3), row by row.

    There is a grey line around each image. Small images are enlarged, and cells without an image
    are black.
    """
    scale = max(1, FEWEST_PIXELS // images.shape[1])
    images = images.repeat(scale, 1).repeat(scale, 2)
    rows = -(-len(images) // columns)  # rounded up
    cells = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    cells[: len(images)] = images
    cells = np.pad(cells, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=GREY)
    _, height, width, _ = cells.shape
    # (rows, columns, h, w, 3) → (rows, h, columns, w, 3)
    grid = cells.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, 3)


def first_grid(images: np.ndarray, classes: int) -> np.ndarray:
    """Returns the grid of an evaluation's first images, with a column per class, at most 10."""
    columns = min(10, classes)
    rows = 10 if images.shape[1] <= 64 else 4  # large images: fewer, so that the file stays small
    return image_grid(images[: rows * columns], columns)


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an image uint8 (h, w, 3) in the format of the file's ending, whole or not at all."""
    with atomic(path) as temporary:
        Image.fromarray(image).save(temporary, Image.registered_extensions()[path.suffix.lower()])
