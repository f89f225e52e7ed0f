"""Statistics of features in float64: moments that stream, the Fréchet distance, Inception Score, density and coverage, extrapolation in 1/n.

Pure numpy and scipy. Letters: n images, d dimensions of a feature, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]


BLOCK_BYTES = 256 * 2**20  # of one block of a distance matrix


class Gaussian(NamedTuple):
    """What the Fréchet distance knows of a set of features."""

    mean: Array  # (d,)
    cov: Array  # (d, d), divided by n - 1


class Moments:
    """Mean and covariance of features that arrive in parts; memory d², whatever n (Chan, Golub and LeVeque's update)."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self.mean: Array = np.zeros(width)
        self.scatter: Array = np.zeros((width, width))  # Σ (x - mean)(x - mean)ᵀ

    def add(self, part: NDArray[np.floating]) -> None:
        """part (m, d)"""
        x = part.astype(np.float64)
        n, mean = self.n + len(x), x.mean(0)
        x -= mean
        delta = mean - self.mean
        self.scatter += x.T @ x + np.outer(delta, delta) * (self.n * len(x) / n)
        self.mean = self.mean + delta * (len(x) / n)
        self.n = n

    def gaussian(self) -> Gaussian:
        """Raises ValueError for fewer than two images, which have no covariance."""
        if self.n < 2:
            raise ValueError(f"a covariance needs two images or more, found {self.n}")
        return Gaussian(self.mean, self.scatter / (self.n - 1))


def gaussian_of(features: NDArray[np.floating]) -> Gaussian:
    """(n, d) → mean and covariance."""
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian()


def square_root(cov: Array) -> Array:
    """R (d, d) with Σ = R Rᵀ. Eigenvalues that rounding made negative count as zero, so Σ may have any rank."""
    values, vectors = linalg.eigh(cov)
    return vectors * np.sqrt(values.clip(min=0))


def frechet(a: Gaussian, b: Gaussian, root: Array | None = None) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), never below 0. `root`: square_root(b.cov), where it is at hand.

    Σ₁Σ₂ has the eigenvalues of the symmetric RᵀΣ₁R (Σ₂ = R Rᵀ): real and computed stably, at full rank and below it (n < d).
    """
    root = square_root(b.cov) if root is None else root
    product = root.T @ a.cov @ root
    eigenvalues = linalg.eigvalsh((product + product.T) / 2)
    cross = np.sqrt(eigenvalues.clip(min=0)).sum()
    difference = a.mean - b.mean
    return max(0.0, float(difference @ difference + np.trace(a.cov) + np.trace(b.cov) - 2 * cross))


def line_in_inverse_n(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Least-squares line value = intercept + slope/n → (intercept, slope): the value at n = ∞ is the intercept."""
    design = np.stack([np.ones(len(sizes)), 1 / np.asarray(sizes, np.float64)], 1)
    (intercept, slope), *_ = np.linalg.lstsq(design, np.asarray(values, np.float64), rcond=None)
    return float(intercept), float(slope)


def frechet_at_infinity(
    features: NDArray[np.floating], reference: Gaussian, points: int = 10, seed: int = 0
) -> float:
    """The Fréchet distance without the bias of n samples (Chong and Forsyth, arXiv 1911.07023): a line in 1/n through nested subsets
    of n/5 to n of `features` (n, d), extended to 1/n = 0. The bias of the reference's own size stays."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(features))
    sizes = sorted({max(2, round(len(features) * (0.2 + 0.8 * i / (points - 1)))) for i in range(points)})
    moments, values, start, root = Moments(features.shape[1]), [], 0, square_root(reference.cov)
    for size in sizes:
        moments.add(features[order[start:size]])
        values.append(frechet(moments.gaussian(), reference, root))
        start = size
    return line_in_inverse_n(sizes, values)[0]


class InceptionScore:
    """exp E KL(p(y|x) ‖ p(y)), the mean over splits, from logits that arrive in parts; memory splits x C.

    Which split an image falls in is drawn by (seed, its index): a folder sorted by class scores what its shuffled copy does.
    """

    def __init__(self, n: int, classes: int, splits: int = 10, seed: int = 2020) -> None:
        if n < splits:
            raise ValueError(
                f"an Inception Score of {splits} splits needs {splits} images or more, found {n}"
            )
        order = np.random.RandomState(seed).permutation(
            n
        )  # a split is a run of this order, as in torch-fidelity
        self.split = np.empty(n, np.int64)
        bounds = np.arange(splits + 1) * n // splits
        for number, (start, stop) in enumerate(pairwise(bounds)):
            self.split[order[start:stop]] = number
        self.seen = 0
        self.probabilities: Array = np.zeros((splits, classes))
        self.negative_entropy: Array = np.zeros(splits)  # Σ p log p over images and classes

    def add(self, logits: NDArray[np.floating]) -> None:
        """logits (m, C) of the next m images"""
        x = logits.astype(np.float64)
        log_p = x - x.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p, split = np.exp(log_p), self.split[self.seen : self.seen + len(x)]
        np.add.at(self.probabilities, split, p)
        np.add.at(self.negative_entropy, split, (p * log_p).sum(1))
        self.seen += len(x)

    def value(self) -> float:
        assert self.seen == len(self.split), "every image's logits have arrived"
        counts = np.bincount(self.split, minlength=len(self.probabilities))
        marginal = self.probabilities / counts[:, None]
        entropy = -np.where(marginal > 0, marginal * np.log(np.where(marginal > 0, marginal, 1)), 0).sum(1)
        return float(np.exp(self.negative_entropy / counts + entropy).mean())


def distances(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """Euclidean distances of a (n, d) to b (m, d), in blocks of rows of bounded size: (rows, (rows, m))."""
    squares = np.einsum("md,md->m", b, b)
    step = max(1, BLOCK_BYTES // (8 * len(b)))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        block = a[rows]
        square = np.einsum("nd,nd->n", block, block)[:, None] + squares - 2 * (block @ b.T)
        yield rows, np.sqrt(square.clip(min=0))


def density_coverage(samples: Array, reference: Array, k: int = 5) -> tuple[float, float]:
    """Naeem et al. (arXiv 2002.09797) of samples (n, d) and reference (m, d), m > k. A reference image's ball reaches its k-th neighbour.

    density: how many balls a sample lies in, over k (1 where the two sets are alike); coverage: part of the balls that hold a sample.
    """
    if len(reference) <= k:
        raise ValueError(
            f"density and coverage with k = {k} need more than {k} reference images, found {len(reference)}"
        )
    inside, covered = 0, 0
    radius = np.empty(len(reference))
    for rows, block in distances(reference, reference):
        radius[rows] = np.partition(block, k, axis=1)[:, k]  # the nearest is the image itself
    for rows, block in distances(reference, samples):
        within = block <= radius[rows, None]
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return inside / (k * len(samples)), covered / len(reference)
