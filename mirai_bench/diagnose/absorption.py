"""Head absorption: does the trained head do the aligning, or the states that it reads?

The alignment that the head reaches is compared with that of the best linear map of the same frozen states
(ridge regression), and of the states as they are. Letters: N images, T states, K heads, D width of the
states, Z width of the targets, R strengths.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.data.batch import Batch
from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.subject import NotMeasurable, Subject, evenly_spaced
from mirai_bench.foresight.level import InternalLevel
from mirai_bench.train.objective import Objective

PART = 64  # images of a forward pass; the control that takes the wrong image takes it from the same part
CHOOSING = 1 / 5  # of the images that the map is fitted to: they choose its strength
STRENGTHS = tuple(10.0**power for power in range(-6, 2))  # of the mean variance of the states' channels
FITTED = 1 / 3  # of the images that probes are fitted to: a linear map needs fewer

HEADLINE = {
    "absorbed": "mean cosine to the target by the trained head, minus that by the best linear map",
    "head": "mean cosine of the projected states to their targets",
    "ridge": "mean cosine of the best linear map of the states to their targets",
}


class Pairs(NamedTuple):
    """States and targets of a set of images."""

    states: Tensor
    """(N, T, D) after the block that foresight reads."""
    targets: Tensor
    """(N, T, Z) as the loss has them, but of unit length."""


def measure(subject: Subject) -> Finding:
    """Measures the alignment on held-out images, as means over the pairs that exist and then over the heads.

    The states are those that the level reads in training: of the trained weights, not of the EMA, without
    dropout and with all labels. `target_norm: center` takes the mean of all images that are looked at.
    The ridge map (with a bias) is fitted to the unit targets of a third of the images that probes are
    fitted to, head by head. A fifth of these choose its strength. It is the cosine whatever
    `foresight.loss` is.

    `identity`, the cosine of the states themselves, is there if they are as wide as the targets.

    detail: `head`, `ridge` [K], `identity` [K] or empty, and `strengths` [K], the ridge's strength that was
    chosen for each head. Heads without a pair are left out of all.
    """
    objective = subject.objective
    if not isinstance(objective.foresight, InternalLevel):
        raise NotMeasurable("no hidden states are aligned")
    level = objective.foresight
    few = max(2, round(subject.scope.fit_images * FITTED))
    fit = pairs_of(objective, evenly_spaced(subject.codes, few))
    heldout = pairs_of(subject.heldout_objective, subject.heldout)
    return compared(level, fit, heldout)


def compared(level: InternalLevel, fit: Pairs, heldout: Pairs) -> Finding:
    """Measures the alignment of `heldout` by the level's projector, by maps fitted to `fit`, and by none."""
    pairs_of_head = level.valid.sum(0).tolist()  # (K,), in an image
    heads = [head for head, count in enumerate(pairs_of_head) if count > 0]
    head_cosines = projected_cosines(level, heldout).tolist()  # (K,)
    detail: dict[str, list[float]] = {"head": [head_cosines[head] for head in heads]}
    detail |= {"ridge": [], "identity": [], "strengths": []}
    for head in heads:
        x, y = rows_of(fit, level, head)
        heldout_x, heldout_y = rows_of(heldout, level, head)
        # The rows come image by image. Those of the last images choose the strength.
        last = max(1, round(len(fit.states) * CHOOSING)) * pairs_of_head[head]
        chosen = fit_ridge(x, y, len(x) - last)
        detail["ridge"].append(cosine(applied(chosen, heldout_x), heldout_y))
        detail["strengths"].append(chosen.strength)
        if x.shape[1] == y.shape[1]:
            detail["identity"].append(cosine(heldout_x, heldout_y))
    names = ("head", "ridge", "identity")
    values = {name: sum(detail[name]) / len(heads) for name in names if detail[name]}
    return Finding(values | {"absorbed": values["head"] - values["ridge"]}, detail)


# ---- what is aligned with what


@torch.no_grad()
def pairs_of(objective: Objective, images: Batch) -> Pairs:
    """Returns the states of the trained weights and the targets of these images."""
    level = objective.foresight
    assert isinstance(level, InternalLevel) and level.tap is not None, "measure has asked"
    states = []
    features = []
    for part in images.split(-(-len(images.tokens) // PART)):
        states.append(objective.model.states(part.tokens, part.labels, level.tap))
        features.append(level.source(part, part.labels).float())
    targets = level.targets(torch.cat(features))
    return Pairs(torch.cat(states), F.normalize(targets, dim=-1))


def rows_of(pairs: Pairs, level: InternalLevel, head: int) -> tuple[Tensor, Tensor]:
    """Returns the states (n, D) and targets (n, Z) of all pairs of a head, image by image."""
    valid = level.valid[:, head]
    at = level.index[valid, head]
    return pairs.states[:, valid].flatten(0, 1), pairs.targets[:, at].flatten(0, 1)


@torch.no_grad()
def projected_cosines(level: InternalLevel, pairs: Pairs) -> Tensor:
    """Returns the mean cosine of the projected states and their targets, (K,)."""
    total = torch.zeros(level.valid.shape[1])
    for states, targets in zip(pairs.states.split(PART), pairs.targets.split(PART), strict=True):
        projected = F.normalize(level.projector(states), dim=-1)  # (K, n, T, Z)
        for head, of_head in enumerate(projected):
            cosines = (of_head * targets[:, level.index[:, head]]).sum(-1)  # (n, T)
            total[head] += (cosines * level.valid[:, head]).sum().cpu()
    return total / (level.valid.sum(0).cpu().clamp(min=1) * len(pairs.states))


# ---- the linear map


class Moments(NamedTuple):
    """Sums over the rows of x (n, D) and y (n, Z), in float64. Those of two sets of rows add up."""

    rows: Tensor
    """n, a scalar."""
    x: Tensor
    """(D,)."""
    y: Tensor
    """(Z,)."""
    xx: Tensor
    """(D, D)."""
    xy: Tensor
    """(D, Z)."""


class LinearMap(NamedTuple):
    """x ↦ x @ weight + bias, as ridge regression of some strength found it."""

    weight: Tensor
    """(D, Z)."""
    bias: Tensor
    """(Z,)."""
    strength: float


def fit_ridge(x: Tensor, y: Tensor, first: int) -> LinearMap:
    """Returns the ridge regression of y (n, Z) on x (n, D).

    Its strength is the one whose map of the `first` rows has the largest cosine on the others.
    """
    of_first = moments(x[:first], y[:first])
    of_others = moments(x[first:], y[first:])
    scores = [cosine(applied(each, x[first:]), y[first:]) for each in ridge_maps(of_first, STRENGTHS)]
    best = max(range(len(scores)), key=scores.__getitem__)
    of_all = Moments(*(one + other for one, other in zip(of_first, of_others, strict=True)))
    return ridge_maps(of_all, STRENGTHS[best : best + 1])[0]


def moments(x: Tensor, y: Tensor) -> Moments:
    """Returns the sums over rows that a regression of y on x needs."""
    x, y = x.double(), y.double()
    return Moments(x.new_tensor(len(x)), x.sum(0), y.sum(0), x.T @ x, x.T @ y)


def ridge_maps(sums: Moments, strengths: tuple[float, ...]) -> list[LinearMap]:
    """Returns the ridge regression of y on x for each strength."""
    mean = sums.x / sums.rows
    bias = sums.y / sums.rows
    # One decomposition of the covariance serves all strengths.
    sizes, directions = torch.linalg.eigh(sums.xx / sums.rows - torch.outer(mean, mean))
    along = directions.T @ (sums.xy / sums.rows - torch.outer(mean, bias))  # (D, Z)
    sizes = sizes.clamp(min=0)
    unit = sizes.mean().clamp(min=torch.finfo(sizes.dtype).tiny)
    weights = [directions @ (along / (sizes + strength * unit)[:, None]) for strength in strengths]
    pairs = zip(weights, strengths, strict=True)
    return [LinearMap(weight.float(), (bias - mean @ weight).float(), strength) for weight, strength in pairs]


def applied(linear: LinearMap, x: Tensor) -> Tensor:
    """Returns the images (n, Z) of rows x (n, D)."""
    return x @ linear.weight + linear.bias


def cosine(one: Tensor, other: Tensor) -> float:
    """Returns the mean cosine of the rows of two tensors (n, Z)."""
    # In float64: nearly perfect maps differ by less than a rounding of float32.
    return F.cosine_similarity(one.double(), other.double(), dim=-1).mean().item()
