"""Pictures: the states of a few images on the grid, as the material for colours.

Analyses fit three principal directions to all arms together; t-SNE is of one run. Letters: N images, C cells
that a state stands at, D width, R directions that are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.subject import Subject, evenly_spaced

IMAGES = 8
COLOURS = 3
DIRECTIONS = 16  # kept at most
NUMBERS = 12_000  # written at most: about 80 kB
DIGITS = 3  # of each number that is written

HEADLINE: dict[str, str] = {}  # pictures are looked at


class Principal(NamedTuple):
    """The leading principal directions of states."""

    mean: Tensor
    """(D,)."""
    directions: Tensor
    """(R, D), of unit length, the one with the largest variance first."""
    coordinates: Tensor
    """(N, C, R) along these directions."""
    shares: Tensor
    """(R,): the share of the variance along each."""


def measure(subject: Subject) -> Finding:
    """Reduces the states after block `subject.middle` of 8 held-out images, evenly spaced.

    `colours` is the share of the variance that three principal directions hold, and `kept` that of all
    directions that are written down.

    detail: `images` [N], their numbers in the held-out split, and `labels` [N]; `mean` [D], `directions`
    [R, D] and `coordinates` [N, C, R]: the states are about mean + coordinates @ directions. C is one less
    than the grid has cells, because no state has consumed the last. With `scope.pictures` also `tsne`
    [N, C, 3], colours between 0 and 1.
    """
    images = evenly_spaced(subject.heldout_codes, min(IMAGES, subject.scope.heldout_images))
    states = subject.states(subject.middle, images)[:, 1:].cpu()  # (N, C, D)
    found = principal(states, number_kept(states))
    values = {"colours": found.shares[:COLOURS].sum().item(), "kept": found.shares.sum().item()}
    detail: dict[str, Any] = {"images": images.index.tolist(), "labels": images.labels.tolist()}
    for name in ("mean", "directions", "coordinates"):
        detail[name] = shortened(getattr(found, name))
    if subject.scope.pictures:
        detail["tsne"] = shortened(tsne_colours(states, subject.scope.seed))
    return Finding(values, detail)


def number_kept(states: Tensor) -> int:
    """Returns how many directions of states (N, C, D) are written down: fewer for a larger grid."""
    images, cells, width = states.shape
    affordable = (NUMBERS - width) // (images * cells + width)
    return max(COLOURS, min(DIRECTIONS, affordable, width, images * cells))


def principal(states: Tensor, number: int) -> Principal:
    """Returns the leading principal directions of states (N, C, D)."""
    rows = states.flatten(0, 1).double()
    mean = rows.mean(0)
    _, sizes, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    directions = directions[:number]
    # A direction and its opposite are the same: the largest entry is made positive.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    coordinates = (states.double() - mean) @ directions.T
    return Principal(mean, directions, coordinates, (sizes.square() / sizes.square().sum())[:number])


def tsne_colours(states: Tensor, seed: int) -> Tensor:
    """Returns three coordinates of t-SNE of states (N, C, D), each between 0 and 1: (N, C, 3)."""
    # Imported here, because it takes a second.
    from sklearn.manifold import TSNE

    rows = states.flatten(0, 1).numpy()
    perplexity = min(30.0, (len(rows) - 1) / 3)
    placed = TSNE(COLOURS, perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    found = torch.from_numpy(placed)  # (N·C, 3)
    low = found.amin(0)
    return ((found - low) / (found.amax(0) - low)).unflatten(0, states.shape[:2])


def shortened(numbers: Tensor) -> Any:
    """Returns nested lists of numbers with few digits, which take less room."""
    if numbers.dim() == 0:
        return float(f"{numbers.item():.{DIGITS}g}")
    return [shortened(part) for part in numbers]
