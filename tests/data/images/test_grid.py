"""The grid of sample images that a run writes."""

import numpy as np

from mirai_bench.data.images.grid import image_grid


def test_image_grid_is_row_by_row_with_lines_and_filled_with_black():
    images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (10, 20, 30)])
    grid = image_grid(images, 2)
    assert grid.shape == (68, 68, 3)
    assert [grid[1, 1, 0], grid[1, 66, 0], grid[66, 1, 0], grid[66, 66, 0]] == [10, 20, 30, 0]
    assert (grid[0] == 96).all() and (grid[:, 33:35] == 96).all()
