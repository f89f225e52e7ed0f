"""Statistics of features in float64, in pure numpy and scipy.

Moments that are accumulated, the Fréchet distance and its extrapolation in 1/n, and the Inception
Score. Letters: n images, d dimensions of a feature, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]
Floats = NDArray[np.floating]


class Gaussian(NamedTuple):
    """Mean and covariance of a set of features, which is all that the Fréchet distance uses."""

    mean: Array  # (d,)
    cov: Array  # (d, d), divided by n - 1


class Moments:
    """Accumulates mean and covariance of features that arrive in parts.

    Memory is d², whatever the number of images. The update is Chan, Golub and LeVeque's.
    """

    def __init__(self, width: int, gram: Callable[[Array], Array] = lambda x: x.T @ x) -> None:
        """`gram` computes XᵀX, which is nearly all of the work."""
        self.gram = gram
        self.n = 0
        self.mean: Array = np.zeros(width)
        self.scatter: Array = np.zeros((width, width))  # Σ (x - mean)(x - mean)ᵀ

    def add(self, part: Floats) -> None:
        """Adds the features (m, d) of m images."""
        x = part.astype(np.float64)
        n = self.n + len(x)
        mean = x.mean(0)
        x -= mean
        delta = mean - self.mean
        self.scatter += self.gram(x) + np.outer(delta, delta) * (self.n * len(x) / n)
        self.mean = self.mean + delta * (len(x) / n)
        self.n = n

    def gaussian(self) -> Gaussian:
        """Returns mean and covariance.

        Raises ValueError for fewer than two images, which have no covariance.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs two images or more, found {self.n}")
        return Gaussian(self.mean, self.scatter / (self.n - 1))


def square_root(cov: Array) -> Array:
    """Returns R (d, d) with Σ = R Rᵀ.

    Eigenvalues that rounding made negative count as zero, so Σ may have any rank.
    """
    values, vectors = linalg.eigh(cov)
    return vectors * np.sqrt(values.clip(min=0))


def frechet(a: Gaussian, b: Gaussian, root: Array | None = None) -> float:
    """Returns |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), which is never below 0.

    `root` is square_root(b.cov), if it is known already. Σ₁Σ₂ has the eigenvalues of the symmetric
    RᵀΣ₁R, where Σ₂ = R Rᵀ. They are real and computed stably, also below full rank (n < d).
    """
    if root is None:
        root = square_root(b.cov)
    product = root.T @ a.cov @ root
    eigenvalues = linalg.eigvalsh((product + product.T) / 2)
    cross = np.sqrt(eigenvalues.clip(min=0)).sum()
    difference = a.mean - b.mean
    return max(0.0, float(difference @ difference + np.trace(a.cov) + np.trace(b.cov) - 2 * cross))


def line_in_inverse_n(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Returns (intercept, slope) of the least-squares line value = intercept + slope/n.

    The intercept is the value at n = ∞.
    """
    design = np.stack([np.ones(len(sizes)), 1 / np.asarray(sizes, np.float64)], 1)
    (intercept, slope), *_ = np.linalg.lstsq(design, np.asarray(values, np.float64), rcond=None)
    return float(intercept), float(slope)


def frechet_at_infinity(features: Floats, reference: Gaussian, points: int = 10, seed: int = 0) -> float:
    """Returns the Fréchet distance without the bias of n samples.

    This is Chong and Forsyth's estimate (arXiv 1911.07023): a line in 1/n is fitted through nested
    subsets of n/5 to n of the features (n, d) and extended to 1/n = 0. The bias of the reference's
    own size stays.
    """
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(features))
    fractions = [0.2 + 0.8 * i / (points - 1) for i in range(points)]
    sizes = sorted({max(2, round(len(features) * fraction)) for fraction in fractions})
    moments = Moments(features.shape[1])
    root = square_root(reference.cov)
    values = []
    for size in sizes:
        moments.add(features[order[moments.n : size]])
        values.append(frechet(moments.gaussian(), reference, root))
    intercept, _ = line_in_inverse_n(sizes, values)
    return intercept


class InceptionScore:
    """Accumulates exp E KL(p(y|x) ‖ p(y)), the mean over splits, from logits that arrive in parts.

    Memory is splits x C. The split of an image is drawn from (seed, index of the image), so a
    folder that is sorted by class gets the score of its shuffled copy.
    """

    def __init__(self, n: int, classes: int, splits: int = 10, seed: int = 2020) -> None:
        if n < splits:
            raise ValueError(
                f"an Inception Score of {splits} splits needs {splits} images or more, found {n}"
            )
        # A split is a run of this order, as in torch-fidelity.
        order = np.random.RandomState(seed).permutation(n)
        self.split = np.empty(n, np.int64)
        bounds = np.arange(splits + 1) * n // splits
        for number, (start, stop) in enumerate(pairwise(bounds)):
            self.split[order[start:stop]] = number
        self.seen = 0
        self.probabilities: Array = np.zeros((splits, classes))
        self.negative_entropy: Array = np.zeros(splits)  # Σ p log p over images and classes

    def add(self, logits: Floats) -> None:
        """Adds the logits (m, C) of the next m images."""
        x = logits.astype(np.float64)
        log_p = x - x.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        split = self.split[self.seen : self.seen + len(x)]
        np.add.at(self.probabilities, split, p)
        np.add.at(self.negative_entropy, split, (p * log_p).sum(1))
        self.seen += len(x)

    def value(self) -> float:
        """Returns the score of all n images."""
        assert self.seen == len(self.split), "every image's logits have arrived"
        counts = np.bincount(self.split, minlength=len(self.probabilities))
        marginal = self.probabilities / counts[:, None]
        log_marginal = np.log(np.where(marginal > 0, marginal, 1))
        entropy = -np.where(marginal > 0, marginal * log_marginal, 0).sum(1)
        return float(np.exp(self.negative_entropy / counts + entropy).mean())
