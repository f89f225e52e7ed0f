"""The planted data set `staircase`: cells at the end of an image follow from hidden ones by a rule.

A grid of 5x5 fair bits, of which the last P cells are parities of hidden cells in the first three
rows: the first of them of all P hidden cells, the next one of P - 1, and the last one of a single
cell. So every cell after the decisive one can be read off the cell before it and one hidden cell,
and a model that only predicts the next token learns that, and never the decisive parity itself
("Clever Hans", arXiv 2403.06963). A state that must foresee the later cells as well is taught the
parities of 1, 2, … hidden cells, a staircase that gradient descent can climb (arXiv 2108.10573).

With `cut` the last row of each image is that of another image. Then nothing can be foreseen.

The code of cell i is 2i + bit, so that every token says where it stands. Letters: n images, P
parities, T = 25 cells.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np

from mirai_bench.config.data_config import StaircaseConfig

SIDE = 5
CELLS = SIDE * SIDE
CODES = 2 * CELLS
# Hidden cells are among the first three rows, of which the last parities are rows away.
HIDDEN_AMONG = 3 * SIDE
SEEDS = {"train": 12345, "heldout": 999}
HELDOUT_IMAGES = 1000


def hidden_cells(planted: StaircaseConfig) -> np.ndarray:
    """Returns the hidden cells (P,), in the order in which parities take them in."""
    return np.random.default_rng(planted.draw).permutation(HIDDEN_AMONG)[: planted.parities]


def planted_cells(planted: StaircaseConfig) -> range:
    """Returns the cells that follow from the hidden ones. The first one is the decisive cell."""
    return range(CELLS - planted.parities, CELLS)


def parities(bits: np.ndarray, planted: StaircaseConfig) -> np.ndarray:
    """Returns what the planted cells (n, P) of bits (n, T) have to be, the longest parity first."""
    return np.bitwise_xor.accumulate(bits[:, hidden_cells(planted)], 1)[:, ::-1]


@lru_cache(maxsize=4)
def make_codes(planted: StaircaseConfig, split: Literal["train", "heldout"]) -> np.ndarray:
    """Returns the codes uint8 (n, T) of a split."""
    rng = np.random.default_rng(SEEDS[split])
    n = planted.images if split == "train" else HELDOUT_IMAGES
    bits = rng.integers(0, 2, (n, CELLS))
    bits[:, planted_cells(planted)] = parities(bits, planted)
    if planted.cut:
        bits[:, -SIDE:] = bits[rng.permutation(n), -SIDE:]
    return (2 * np.arange(CELLS) + bits).astype(np.uint8)


def make_images(codes: np.ndarray) -> np.ndarray:
    """Returns the images uint8 (n, 5, 5, 3) of codes (n, T): 50 equidistant grey levels."""
    grey = np.round(codes * (255 / (CODES - 1))).astype(np.uint8)
    return np.repeat(grey.reshape(-1, SIDE, SIDE, 1), 3, axis=-1)


def obeys(codes: np.ndarray, planted: StaircaseConfig) -> np.ndarray:
    """Tells of each image (n,) whether its codes (n, T) are well formed and obey every parity.

    They are well formed if cell i holds code 2i or 2i + 1.
    """
    well_formed = (codes // 2 == np.arange(CELLS)).all(1)
    bits = codes % 2
    return well_formed & (bits[:, planted_cells(planted)] == parities(bits, planted)).all(1)


def floor(planted: StaircaseConfig) -> float:
    """Returns the least next-token loss that a model can have, in nats per token.

    Each fair bit costs ln 2, and a planted cell nothing.
    """
    free = CELLS if planted.cut else CELLS - planted.parities
    return free * math.log(2) / CELLS
