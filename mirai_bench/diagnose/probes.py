"""Linear probes: multinomial logistic regressions of what cells hold, many on the same features.

They start from ridge solutions, whose L2 strength is chosen on images that they were not fitted to, and
are then improved by L-BFGS. A probe has one matrix for all cells and a bias for each cell, so that what a
cell's position alone says is in every probe, and no feature gets credit for it.

Letters: C cells, n images, D width of a feature, O probes, V classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = (1e-4, 1e-3, 1e-2, 6e-2)  # of L2, for features of variance 1
STEPS = (1.0, 0.5)  # how far along a ridge solution is tried
CHOICE = 5  # every fifth image chooses the strength
ITERATIONS = 6  # of L-BFGS. Ten more change the gain on digits by less than 0.005 bits.
SUFFICIENT = 1e-4  # of the decrease that the gradient promises: a step that gives less is shortened
SHORTEN = 0.3
SMALLEST = 1e-12  # curvature along a step: below it is rounding
BITS = 1 / torch.log(torch.tensor(2.0)).item()  # of a nat


@dataclass(frozen=True)
class Examples:
    """Features of cells of images, and the classes that probes read off them."""

    features: Tensor
    """(C, n, D)."""
    classes: Tensor
    """(C, n, O) long."""
    valid: Tensor
    """(C, O) bool: whether probe o has something to read at this cell."""

    def images(self, which: Tensor) -> Examples:
        """Returns the examples of some images, which are indices or (n,) bool."""
        return Examples(self.features[:, which], self.classes[:, which], self.valid)

    @property
    def counts(self) -> Tensor:
        """Returns how many examples each probe has, (O,)."""
        return self.valid.sum(0) * self.features.shape[1]


class Probe(NamedTuple):
    """O probes on the same features."""

    weight: Tensor
    """(O, V, D)."""
    bias: Tensor
    """(C, O, V)."""


def standardised(fit: Tensor, heldout: Tensor, *, each: bool) -> tuple[Tensor, Tensor]:
    """Returns features (C, n, D) without the mean of their cell, and with variance 1.

    Mean and variance are those of `fit`. With `each` every feature has variance 1, otherwise their mean is
    1: rare one-hot features then stay small, and L2 keeps them from fitting single images.
    """
    mean = fit.mean(1, keepdim=True)
    fit = fit - mean
    variance = fit.square().mean((0, 1))  # (D,)
    if not each:
        variance = variance.mean()
    scale = variance.sqrt().clamp(min=1e-6)
    return fit / scale, (heldout - mean) / scale


def fit_probes(examples: Examples, num_classes: int) -> Probe:
    """Fits the probes."""
    # 1. In the features' principal directions, ridge is a division.
    flat = examples.features.flatten(0, 1)
    variances, rotation = torch.linalg.eigh((flat.T @ flat / len(flat)).double())
    variances = variances.clamp(min=0).float()
    rotation = rotation.float()
    rotated = Examples(examples.features @ rotation, examples.classes, examples.valid)
    # 2. The strength, and how far to go along the ridge solution.
    index = torch.arange(rotated.features.shape[1], device=flat.device)
    chooses = index % CHOICE == CHOICE - 1
    strength, step = _choose(rotated.images(~chooses), rotated.images(chooses), variances, num_classes)
    # 3. All images. The first step of L-BFGS is the one to the ridge solution.
    prior = log_marginals(examples, num_classes)
    start = Probe(examples.features.new_zeros(*prior.shape[1:], flat.shape[1]), prior)
    found = _improve(rotated, start, _curvature(examples, prior, variances), strength, step)
    return Probe(found.weight @ rotation.T, found.bias)


def log_marginals(examples: Examples, num_classes: int) -> Tensor:
    """Returns the log of how often each class stands at each cell (C, O, V), with half a count added."""
    classes = examples.classes.transpose(1, 2)  # (C, O, n)
    counts = classes.new_zeros((*classes.shape[:2], num_classes), dtype=torch.float32)
    counts.scatter_add_(2, classes, torch.ones_like(classes, dtype=torch.float32))
    # Classes that a probe meets nowhere get less: half a count is shared as the classes are elsewhere.
    overall = (counts * examples.valid[..., None]).sum(0) + 1e-3  # (O, V)
    overall = overall / overall.sum(-1, keepdim=True)
    counts = counts + 0.5 * num_classes * overall
    return (counts / counts.sum(-1, keepdim=True)).log()


def _slope(examples: Examples, prior: Tensor) -> Tensor:
    """Returns the gradient of the mean loss by the weights (O, V, D), at weight 0."""
    weight = examples.features.new_zeros(*prior.shape[1:], examples.features.shape[-1])
    return loss_and_gradient(examples, Probe(weight, prior))[1] / examples.counts[:, None, None]


def _curvature(examples: Examples, prior: Tensor, variances: Tensor) -> Tensor:
    """Returns the diagonal of its second derivative (O, V, D), in the features' principal directions."""
    shares = (prior.exp() * examples.valid[..., None]).sum(0) / examples.valid.sum(0)[:, None]  # (O, V)
    return (shares * (1 - shares))[..., None] * variances


def _choose(fit: Examples, rest: Examples, variances: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the strength and the step (O,) whose ridge solution of `fit` is best on the rest.

    -slope / (curvature + strength) is one Newton step from the marginals. It is the ridge regression of
    the classes' indicators, divided by the variance of the indicator, which makes logits of it.
    """
    prior = log_marginals(fit, num_classes)
    slope = _slope(fit, prior)
    curvature = _curvature(fit, prior, variances)
    best = torch.full_like(slope[:, 0, 0], torch.inf)
    strength = torch.zeros_like(best)
    step = torch.zeros_like(best)
    for tried in STRENGTHS:
        for share in STEPS:
            found = losses(rest, Probe(-share * slope / (curvature + tried), prior)).sum(0)
            better = found < best
            best = torch.where(better, found, best)
            strength = torch.where(better, tried, strength)
            step = torch.where(better, share, step)
    return strength, step


def loss_and_gradient(examples: Examples, probe: Probe) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the summed loss in nats (O,), and its gradient by weights and biases."""
    loss = torch.zeros_like(examples.counts, dtype=torch.float32)
    by_weight = torch.zeros_like(probe.weight)
    by_bias = torch.zeros_like(probe.bias)
    # Cell by cell: memory stays small, and probes that have nothing to read at a cell cost nothing.
    for cell, here in enumerate(examples.valid):
        which = here.nonzero()[:, 0]  # (o,)
        features = examples.features[cell]  # (n, D)
        log_shares, classes = _log_shares(examples, probe, cell, which)
        loss[which] -= log_shares.gather(1, classes).sum((1, 2))
        errors = log_shares.exp_()  # (o, V, n)
        errors.scatter_add_(1, classes, torch.full_like(errors[:, :1], -1))
        by_weight[which] += (errors.flatten(0, 1) @ features).unflatten(0, errors.shape[:2])
        by_bias[cell, which] = errors.sum(2)
    return loss, by_weight, by_bias


def losses(examples: Examples, probe: Probe) -> Tensor:
    """Returns the summed loss in nats of each probe at each cell (C, O), 0 where there is nothing."""
    found = torch.zeros_like(examples.valid, dtype=torch.float32)
    for cell, here in enumerate(examples.valid):
        which = here.nonzero()[:, 0]
        log_shares, classes = _log_shares(examples, probe, cell, which)
        found[cell, which] = -log_shares.gather(1, classes).sum((1, 2))
    return found


def _log_shares(examples: Examples, probe: Probe, cell: int, which: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what probes say at a cell, log p (o, V, n), and the true classes (o, 1, n)."""
    weight = probe.weight[which]  # (o, V, D)
    logits = (weight.flatten(0, 1) @ examples.features[cell].T).unflatten(0, weight.shape[:2])
    logits += probe.bias[cell, which][..., None]
    return logits.log_softmax(1), examples.classes[cell][:, which].T[:, None]


# ---- L-BFGS


def _improve(examples: Examples, start: Probe, curvature: Tensor, strength: Tensor, step: Tensor) -> Probe:
    """Improves the probes by L-BFGS on mean loss + strength/2 · |weight|². `step` (O,) is the first one."""
    shape = start.weight.shape[1:]  # (V, D)
    num_weights = start.weight[0].numel()
    counts = examples.counts[:, None].float()
    of_weight = strength[:, None, None]

    def pack(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([weight.flatten(1), bias.transpose(0, 1).flatten(1)], 1)

    def unpack(point: Tensor) -> Probe:
        weight = point[:, :num_weights].unflatten(1, shape)
        bias = point[:, num_weights:].unflatten(1, (len(examples.valid), shape[0]))
        return Probe(weight, bias.transpose(0, 1))

    def objective(point: Tensor) -> tuple[Tensor, Tensor]:
        probe = unpack(point)
        loss, by_weight, by_bias = loss_and_gradient(examples, probe)
        penalty = strength / 2 * probe.weight.square().sum((1, 2))
        gradient = pack(by_weight, by_bias) / counts
        gradient[:, :num_weights] += (of_weight * probe.weight).flatten(1)
        return loss / counts[:, 0] + penalty, gradient

    shares = (start.bias.exp() + 0.01) / len(examples.valid)  # of all examples of a probe
    metric = 1 / pack(curvature + of_weight, shares)
    return unpack(minimise(objective, pack(start.weight, start.bias), metric, step, ITERATIONS))


def minimise(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    metric: Tensor,
    length: Tensor,
    iterations: int,
) -> Tensor:
    """Minimises O functions at once by L-BFGS (Nocedal and Wright, algorithm 7.4), each by itself.

    objective maps points (O, P) to values (O,) and gradients (O, P). metric (O, P) is the first guess of
    the diagonal of the inverse Hessians, and length (O,) that of the first steps. A step that lowers a
    function too little is tried again, shorter.
    """
    point = start
    value, gradient = objective(point)
    pairs: list[tuple[Tensor, Tensor]] = []  # steps and changes of the gradient, zero where none was made
    for _ in range(iterations):
        direction = -_times_inverse_hessian(gradient, pairs, metric)
        there = point + length[:, None] * direction
        value_there, gradient_there = objective(there)
        promised = length * (gradient * direction).sum(1)  # below 0
        good = value_there <= value + SUFFICIENT * promised
        moved = good[:, None]
        pairs.append(((there - point) * moved, (gradient_there - gradient) * moved))
        point = torch.where(moved, there, point)
        gradient = torch.where(moved, gradient_there, gradient)
        value = torch.where(good, value_there, value)
        length = torch.where(good, 1.0, length * SHORTEN)
    return point


def _times_inverse_hessian(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]], metric: Tensor) -> Tensor:
    """Returns the inverse Hessian, as steps and changes of the gradient show it, times the gradient."""
    result = gradient.clone()
    known = []
    for step, change in reversed(pairs):
        product = (step * change).sum(1)
        # 0 where no step was made, or rounding spoils it: then the pair has no effect.
        inverse = torch.where(product > SMALLEST, 1 / product, 0.0)
        share = inverse * (step * result).sum(1)
        result -= share[:, None] * change
        known.append((inverse, share))
    result *= metric
    if pairs:
        step, change = pairs[-1]
        product = (step * change).sum(1)
        scale = product / (change * metric * change).sum(1).clamp(min=1e-20)
        result *= torch.where(product > SMALLEST, scale, 1.0)[:, None]
    for (step, change), (inverse, share) in zip(pairs, reversed(known), strict=True):
        back = inverse * (change * result).sum(1)
        result += (share - back)[:, None] * step
    return result
