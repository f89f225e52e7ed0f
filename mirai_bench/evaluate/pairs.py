"""The metrics that compare images with images: KID, precision, recall, density and coverage.

All of them follow from the inner products of features, which are nearly all of the work. So each
product is computed once, in float64 and in blocks, and what a set of images says of itself is kept.
Letters: n and m images, d dimensions, k neighbours, s subsets of the kernel distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from mirai_bench.evaluate.metrics import Array

# Number of neighbours that the ball of an image reaches to.
PRECISION_NEIGHBOURS = 3  # of precision and recall (arXiv 1904.06991)
DENSITY_NEIGHBOURS = 5  # of density and coverage (arXiv 2002.09797)
NEAREST = DENSITY_NEIGHBOURS + 1  # kept for each image, with itself
KID_SEED = 2020  # torch-fidelity's
BLOCK = 1_500  # images on each side of a block of products: 18 MB


class Subsets(NamedTuple):
    """The random subsets of two sets of images that the kernel distance is averaged over."""

    size: int
    """Number of images in each."""
    ours: Array
    """Which of n images are in which subset, 0 or 1, (n, s)."""
    theirs: Array
    """The same of m others, (m, s)."""


def draw_subsets(n: int, m: int, count: int, size: int) -> Subsets:
    """Draws as torch-fidelity does."""
    rng = np.random.RandomState(KID_SEED)
    ours = np.zeros((n, count))
    theirs = np.zeros((m, count))
    for number in range(count):
        ours[rng.choice(n, size, replace=False), number] = 1
        theirs[rng.choice(m, size, replace=False), number] = 1
    return Subsets(size, ours, theirs)


class Within(NamedTuple):
    """What a set of images says of itself."""

    nearest: Array
    """Squared distances (n, NEAREST) of each image to its nearest ones, itself first."""
    kernel: Array
    """For each subset Σ k(x, y) over its pairs x ≠ y, (s,)."""

    def radius(self, neighbours: int) -> Array:
        """Returns the squared distance (n,) of each image to this neighbour."""
        if self.nearest.shape[1] <= neighbours:
            raise ValueError(
                f"a ball that reaches {neighbours} neighbours needs more than {neighbours} images, "
                f"found {self.nearest.shape[1]}"
            )
        return self.nearest[:, neighbours]


# ---- products and what follows from them


def blocks(n: int) -> list[slice]:
    """Returns the rows of n images in blocks."""
    return [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]


def multiplier(x: Array, y: Array, device: torch.device) -> Callable[[slice, slice], Array]:
    """Returns a function from rows of x (n, d) and of y (m, d) to their inner products."""
    if device.type == "cpu":
        # NumPy sees that two operands are the same rows, and then does half of the work.
        return lambda rows, columns: x[rows] @ y[columns].T
    ours = torch.from_numpy(x).to(device)
    theirs = ours if y is x else torch.from_numpy(y).to(device)
    return lambda rows, columns: (ours[rows] @ theirs[columns].T).cpu().numpy()


def squares(x: Array) -> Array:
    """Returns the squared lengths (n,) of features (n, d)."""
    return np.einsum("nd,nd->n", x, x)


def kernel(products: Array, width: int) -> Array:
    """Returns KID's polynomial kernel (x·y/d + 1)³ (arXiv 1801.01401)."""
    base = products / width + 1
    return base * base * base  # a tenth of the time of a power


def sums(values: Array, rows: Array, columns: Array) -> Array:
    """Returns for each subset the sum (s,) of values (n, m) over its pairs.

    `rows` (n, s) and `columns` (m, s) are 1 where an image is in a subset.
    """
    return np.einsum("ns,ns->s", rows, values @ columns)


def squared_distances(products: Array, ours: Array, theirs: Array) -> Array:
    """Returns |x - y|² (n, m) from the products, in their place, and the squared lengths."""
    products *= -2
    products += ours[:, None]
    products += theirs
    return products.clip(min=0, out=products)


def within(x: Array, members: Array, device: torch.device) -> Within:
    """Returns what images of features (n, d) say of themselves.

    `members` (n, s) tells which of them are in which subset.
    """
    count, width = x.shape
    lengths = squares(x)
    product = multiplier(x, x, device)
    nearest = np.full((count, min(NEAREST, count)), np.inf)
    total = np.zeros(members.shape[1])
    # A block below the diagonal is the transpose of one above it.
    for number, rows in enumerate(blocks(count)):
        for columns in blocks(count)[number:]:
            products = product(rows, columns)
            times = 1 if columns == rows else 2
            total += times * sums(kernel(products, width), members[rows], members[columns])
            found = squared_distances(products, lengths[rows], lengths[columns])
            if columns == rows:
                np.fill_diagonal(found, 0)
            else:
                _keep_nearest(nearest[columns], found.T)
            _keep_nearest(nearest[rows], found)
    total -= kernel(lengths, width) @ members
    return Within(np.sort(nearest, axis=1), total)


def _keep_nearest(nearest: Array, found: Array) -> None:
    """Puts into `nearest` (n, k) the least of its values and those of `found` (n, m)."""
    k = nearest.shape[1]
    everything = np.concatenate([nearest, found], axis=1)
    nearest[:] = np.partition(everything, k - 1, axis=1)[:, :k]


# ---- the metrics


def compare_pairs(
    x: Array, y: Array, of_x: Within, of_y: Within, subsets: Subsets, device: torch.device
) -> dict[str, float]:
    """Returns `kid` and the other metrics of samples x (n, d) against reference images y (m, d)."""
    width = x.shape[1]
    lengths = squares(x), squares(y)
    product = multiplier(x, y, device)
    reach_x = of_x.radius(PRECISION_NEIGHBOURS)[:, None]
    reach_y = of_y.radius(PRECISION_NEIGHBOURS)
    ball = of_y.radius(DENSITY_NEIGHBOURS)
    # Samples in a ball of a reference image, reference images in a ball of a sample, and reference
    # images with a sample in their larger ball.
    precise = np.zeros(len(x), bool)
    recalled = np.zeros(len(y), bool)
    covered = np.zeros(len(y), bool)
    inside = 0
    cross = np.zeros(len(of_x.kernel))
    for rows in blocks(len(x)):
        for columns in blocks(len(y)):
            products = product(rows, columns)
            cross += sums(kernel(products, width), subsets.ours[rows], subsets.theirs[columns])
            found = squared_distances(products, lengths[0][rows], lengths[1][columns])
            precise[rows] |= (found <= reach_y[columns]).any(1)
            recalled[columns] |= (found <= reach_x[rows]).any(0)
            in_ball = found <= ball[columns]
            covered[columns] |= in_ball.any(0)
            inside += int(np.count_nonzero(in_ball))
    # The unbiased estimate of the squared MMD (arXiv 1801.01401, equation 4), over the subsets.
    size = subsets.size
    discrepancy = (of_x.kernel + of_y.kernel) / (size * (size - 1)) - 2 * cross / size**2
    return {
        "kid": float(discrepancy.mean()),
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": inside / (DENSITY_NEIGHBOURS * len(x)),
        "coverage": float(covered.mean()),
    }
