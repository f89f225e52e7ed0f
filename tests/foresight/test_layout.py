"""Layouts by hand, and what holds for every layout on every grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.foresight.layout import LAYOUTS, cells_of, grid_2d, grid_2d_flat, raster_1d

grids = st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda grid: grid[0] * grid[1] > 1)


def shown(table) -> list[list[int | None]]:
    return [[int(t) if v else None for t, v in zip(*row, strict=True)] for row in zip(*table, strict=True)]


def test_raster_1d_on_4x4_by_hand():
    expected = [[i, i + 1, i + 2] for i in range(14)] + [[14, 15, None], [15, None, None]]
    assert shown(raster_1d(4, 4, 3)) == expected


def test_grid_2d_on_4x4_by_hand():
    # here, right, below, below-left, below-right (both at √2; ties in raster order)
    assert shown(grid_2d(4, 4, 5)) == [
        [0, 1, 4, None, 5],
        [1, 2, 5, 4, 6],
        [2, 3, 6, 5, 7],
        [3, None, 7, 6, None],
        [4, 5, 8, None, 9],
        [5, 6, 9, 8, 10],
        [6, 7, 10, 9, 11],
        [7, None, 11, 10, None],
        [8, 9, 12, None, 13],
        [9, 10, 13, 12, 14],
        [10, 11, 14, 13, 15],
        [11, None, 15, 14, None],
        [12, 13, None, None, None],
        [13, 14, None, None, None],
        [14, 15, None, None, None],
        [15, None, None, None, None],
    ]


def test_grid_2d_flat_has_the_official_offsets_and_wraps():
    targets, valid = grid_2d_flat(16, 16, 9)
    assert list(targets[0]) == [0, 1, 16, 17, 2, 18, 34, 33, 32]
    assert targets[15, 1] == 16 and valid[15, 1]  # the right neighbour of a row's end is the next row's start
    assert list(grid_2d_flat(8, 8, 12).targets[0]) == [0, 1, 8, 9, 2, 10, 18, 17, 16, 9, 10, 11]


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(grid=grids, data=st.data())
def test_every_layout_stays_in_range_and_never_looks_back(name, grid, data):
    height, width = grid
    k = data.draw(st.integers(1, height * width))
    targets, valid = LAYOUTS[name](height, width, k)
    cells = np.arange(height * width)
    assert targets.shape == valid.shape == (height * width, k)
    assert targets.dtype == np.int64 and valid.dtype == bool
    assert ((targets >= 0) & (targets < height * width)).all()
    assert (targets >= cells[:, None])[valid].all()
    assert valid[:, 0].all() and (targets[:, 0] == cells).all()  # head 0 is the cell itself


@settings(max_examples=60, deadline=None)
@given(grid=grids, data=st.data())
def test_grid_2d_never_wraps_and_is_ordered_by_distance(grid, data):
    height, width = grid
    k = data.draw(st.integers(1, height * width))
    targets, valid = grid_2d(height, width, k)
    rows, columns = np.divmod(targets, width)
    anchor_rows, anchor_columns = np.divmod(np.arange(height * width), width)
    down, right = rows - anchor_rows[:, None], columns - anchor_columns[:, None]
    for head in range(k):  # one offset a head, wherever it is valid
        assert (
            len({(d, r) for d, r, v in zip(down[:, head], right[:, head], valid[:, head], strict=True) if v})
            == 1
        )
    distance = [(down[valid[:, h], h][0] ** 2 + right[valid[:, h], h][0] ** 2) for h in range(k)]
    assert distance == sorted(distance)


def test_cells_without_the_states_own():
    """On a 2x2 grid: right, then right and below; at the output head 0 is next-token prediction."""

    def shown(**fields):
        targets, valid = cells_of(ForesightConfig(**fields), (2, 2))
        return np.where(valid, targets, -1).tolist()

    right = {"level": "internal", "own_cell": False, "k": 1}
    assert shown(**right) == [[1], [-1], [3], [-1]]
    assert shown(**right | {"k": 2}) == [[1, 2], [-1, 3], [3, -1], [-1, -1]]
    assert shown(level="output", own_cell=False, k=2) == shown(level="output", k=2) == shown(k=2)
