"""The metrics that compare images with images: KID, precision, recall, density, coverage, and MIND.

All but MIND follow from the inner products of features, which are nearly all of the work. So each
product is computed once, in float64 and in blocks, and what a set of images says of itself is kept.
All of it happens on the device of the features. Letters: n and m images, d dimensions, k neighbours,
s subsets of the kernel distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Number of neighbours that the ball of an image reaches to.
PRECISION_NEIGHBOURS = 3  # of precision and recall (arXiv 1904.06991)
DENSITY_NEIGHBOURS = 5  # of density and coverage (arXiv 2002.09797)
NEAREST = DENSITY_NEIGHBOURS + 1  # kept for each image, with itself
KID_SEED = 2020  # torch-fidelity's
BLOCK = 1_500  # images on each side of a block of products: 18 MB
DIRECTIONS = 100  # of MIND at a time


class Subsets(NamedTuple):
    """The random subsets of two sets of images that the kernel distance is averaged over."""

    size: int
    """Number of images in each."""
    ours: Tensor
    """Which of n images are in which subset, 0 or 1, float64 (n, s)."""
    theirs: Tensor
    """The same of m others, (m, s)."""


def draw_subsets(n: int, m: int, count: int, size: int, device: torch.device) -> Subsets:
    """Draws as torch-fidelity does."""
    rng = np.random.RandomState(KID_SEED)
    ours = np.zeros((n, count))
    theirs = np.zeros((m, count))
    for number in range(count):
        ours[rng.choice(n, size, replace=False), number] = 1
        theirs[rng.choice(m, size, replace=False), number] = 1
    return Subsets(size, torch.from_numpy(ours).to(device), torch.from_numpy(theirs).to(device))


class Within(NamedTuple):
    """What a set of images says of itself."""

    nearest: Tensor
    """Squared distances (n, NEAREST) of each image to its nearest ones, itself first."""
    kernel: Tensor
    """For each subset Σ k(x, y) over its pairs x ≠ y, (s,)."""

    def radius(self, neighbours: int) -> Tensor:
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


def multiplier(x: Tensor, y: Tensor) -> Callable[[slice, slice], Tensor]:
    """Returns a function from rows of x (n, d) and of y (m, d) to their inner products."""
    if x.device.type == "cpu":
        # NumPy sees that two operands are the same rows, and then does half of the work.
        ours, theirs = x.numpy(), y.numpy()
        return lambda rows, columns: torch.from_numpy(ours[rows] @ theirs[columns].T)
    return lambda rows, columns: x[rows] @ y[columns].T


def squares(x: Tensor) -> Tensor:
    """Returns the squared lengths (n,) of features (n, d)."""
    return torch.linalg.vecdot(x, x)


def kernel(products: Tensor, width: int) -> Tensor:
    """Returns KID's polynomial kernel (x·y/d + 1)³ (arXiv 1801.01401)."""
    base = products.div(width).add_(1)
    return base.square().mul_(base)  # a tenth of the time of a power, and two blocks of memory


def sums(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns for each subset the sum (s,) of values (n, m) over its pairs.

    `rows` (n, s) and `columns` (m, s) are 1 where an image is in a subset.
    """
    return (rows * (values @ columns)).sum(0)


def squared_distances(products: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns |x - y|² (n, m) from the products, in their place, and the squared lengths."""
    return products.mul_(-2).add_(ours[:, None]).add_(theirs).clamp_(min=0)


def within(x: Tensor, members: Tensor) -> Within:
    """Returns what images of features (n, d) say of themselves.

    `members` (n, s) tells which of them are in which subset.
    """
    count, width = x.shape
    lengths = squares(x)
    product = multiplier(x, x)
    nearest = x.new_full((count, min(NEAREST, count)), torch.inf)
    total = x.new_zeros(members.shape[1])
    # A block below the diagonal is the transpose of one above it.
    for number, rows in enumerate(blocks(count)):
        for columns in blocks(count)[number:]:
            products = product(rows, columns)
            times = 1 if columns == rows else 2
            total += times * sums(kernel(products, width), members[rows], members[columns])
            found = squared_distances(products, lengths[rows], lengths[columns])
            if columns == rows:
                found.fill_diagonal_(0)
            else:
                _keep_nearest(nearest[columns], found.T)
            _keep_nearest(nearest[rows], found)
    total -= kernel(lengths, width) @ members
    return Within(nearest.sort(1).values, total)


def _keep_nearest(nearest: Tensor, found: Tensor) -> None:
    """Puts into `nearest` (n, k) the least of its values and those of `found` (n, m)."""
    everything = torch.cat([nearest, found], 1)
    nearest[:] = everything.topk(nearest.shape[1], largest=False, sorted=False).values


# ---- the metrics


def compare_pairs(x: Tensor, y: Tensor, of_x: Within, of_y: Within, subsets: Subsets) -> dict[str, float]:
    """Returns `kid` and the other metrics of samples x (n, d) against reference images y (m, d)."""
    width = x.shape[1]
    lengths = squares(x), squares(y)
    product = multiplier(x, y)
    reach_x = of_x.radius(PRECISION_NEIGHBOURS)[:, None]
    reach_y = of_y.radius(PRECISION_NEIGHBOURS)
    ball = of_y.radius(DENSITY_NEIGHBOURS)
    # Samples in a ball of a reference image, reference images in a ball of a sample, and reference
    # images with a sample in their larger ball.
    precise = x.new_zeros(len(x), dtype=torch.bool)
    recalled = x.new_zeros(len(y), dtype=torch.bool)
    covered = x.new_zeros(len(y), dtype=torch.bool)
    inside = x.new_zeros((), dtype=torch.long)
    cross = torch.zeros_like(of_x.kernel)
    for rows in blocks(len(x)):
        for columns in blocks(len(y)):
            products = product(rows, columns)
            cross += sums(kernel(products, width), subsets.ours[rows], subsets.theirs[columns])
            found = squared_distances(products, lengths[0][rows], lengths[1][columns])
            precise[rows] |= (found <= reach_y[columns]).any(1)
            recalled[columns] |= (found <= reach_x[rows]).any(0)
            in_ball = found <= ball[columns]
            covered[columns] |= in_ball.any(0)
            inside += in_ball.sum()
    # The unbiased estimate of the squared MMD (arXiv 1801.01401, equation 4), over the subsets.
    size = subsets.size
    discrepancy = (of_x.kernel + of_y.kernel) / (size * (size - 1)) - 2 * cross / size**2
    return {
        "kid": discrepancy.mean().item(),
        "precision": precise.double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": inside.item() / (DENSITY_NEIGHBOURS * len(x)),
        "coverage": covered.double().mean().item(),
    }


def mind(samples: Tensor, reference: Tensor, directions: int = 1000, seed: int = 0) -> float:
    """Returns MIND (arXiv 2605.06797): the sliced Wasserstein-2 distance of two sets of features.

    Both sets are projected onto random unit directions u_i of the d dimensions, and sorted:
    3d / (n·M) · Σ_i Σ_j |sort(u_i·X)_j - sort(u_i·Y)_j|², with M directions. There is no covariance
    to estimate, so that a thousand images say something. Sets of a shift δ are 3|δ|² apart. The sets
    must be of one size: of the larger one, n rows are drawn.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    n = min(len(samples), len(reference))
    x, y = (
        rows if len(rows) == n else rows[torch.from_numpy(rng.permutation(len(rows))[:n])]
        for rows in (samples, reference)
    )
    width = x.shape[1]
    total = 0.0
    # In parts, so that memory does not grow with the number of directions.
    for start in range(0, directions, DIRECTIONS):
        u = rng.standard_normal((width, min(DIRECTIONS, directions - start)))  # (d, m)
        u /= np.linalg.norm(u, axis=0)
        total += (projected(x, u) - projected(y, u)).square().sum().item()
    return 3 * width * total / (n * directions)


def projected(x: Tensor, directions: np.ndarray) -> Tensor:
    """Returns x (n, d) along each of the directions (d, m), sorted, (n, m)."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sort(x.numpy() @ directions, axis=0))  # NumPy sorts several at a time
    return (x @ torch.from_numpy(directions).to(x.device)).sort(0).values
