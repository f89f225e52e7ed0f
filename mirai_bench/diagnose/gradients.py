"""Gradient interference: does foresight pull the shared parameters where next-token prediction does?

Cosine and magnitude similarity are those of PCGrad (arXiv 2001.06782). Each batch is seen as two halves.
The gradients of next-token prediction on the halves say how large a cosine can be with so much noise;
that of one half's next-token prediction with the other half's foresight compares with it, because these
two do not share the noise of their images either.
Letters: B images of a batch, T tokens, K heads of foresight, P parameters, S batches, n = 2 + 2K rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mirai_bench.data.batch import Batch
from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.subject import NotMeasurable, Subject
from mirai_bench.foresight import Level
from mirai_bench.model.kernels import linear_cross_entropy
from mirai_bench.model.transformer import ARModel
from mirai_bench.train.objective import Objective
from mirai_bench.train.optim import foresight_weight

PART = 64  # most images of a forward and backward pass

HEADLINE = {
    "cos": "cosine of the gradients of next-token prediction and foresight, over the shared parameters",
    "negative": "share of the batches whose cosine is below zero",
    "ratio": "norm of foresight's gradient, times λ, over that of next-token prediction",
    "cross": "the cosine, but of gradients on different halves of a batch, which compares with the ceiling",
    "ceiling": "cosine of next-token prediction's gradients on two halves of a batch: what noise leaves",
}


class Mixture(NamedTuple):
    """How gradients add up: weights of the n rows, which are NTP and the K heads of one half, then the other.

    NTP is next-token prediction.
    """

    ntp: Tensor
    """(2, n): each half's share in the gradient of next-token prediction."""
    foresight: Tensor
    """(2, n): each half's share in that of λ · foresight. All is zero where there is none."""
    heads: Tensor
    """(K, n): the gradient of each head on both halves, before λ."""


def measure(subject: Subject) -> Finding:
    """Compares gradients of the trained weights (not the EMA) on held-out batches, without dropout.

    No label is dropped, and λ is that of the last step before the snapshot. Where foresight is off, only
    the ceilings are measured. Block 0 is the embeddings. Shared are the embeddings and the blocks up to
    the one that foresight reads; without foresight up to `subject.middle`.

    `cos@b`, `cross@b`, `ratio@b`, `magnitude@b` and `ceiling@b` are means over the batches, `negative@b`
    is a share of them. `pooled_cross@b` and `pooled_ceiling@b` are of the gradients averaged over all
    first and all second halves, which have less noise. `between_heads` is the mean cosine of two heads.
    Without @b a value is of all shared parameters together.

    detail: `cosines` [S, b], the cosine in each batch; `heads` [K, b], the mean cosine of each head's own
    gradient with that of next-token prediction; `between_heads` [b]. What does not exist is empty.
    """
    config = subject.config
    objective = subject.heldout_objective
    total = config.train.epochs * subject.codes.steps_per_epoch(config.train.batch_size)
    progress = max(subject.snapshot.step - 1, 0) / total
    weight = foresight_weight(config.foresight, min(progress, 1.0))
    level = objective.foresight if weight > 0 else None
    groups = shared_parameters(objective, subject.middle if level is None else level.tap)
    batches = drawn_batches(subject)
    grams, pooled = gram_matrices(objective.model, level, groups, batches)
    return summary(grams, pooled, mixture_of(level, weight, len(batches[0].tokens)))


def drawn_batches(subject: Subject) -> list[Batch]:
    """Returns held-out batches of the run's size, fewer or smaller ones if there are too few images."""
    codes = subject.heldout_codes
    size = min(subject.config.train.batch_size, codes.num_images)
    if size < 2:
        raise NotMeasurable("its batches have no two halves")
    count = min(subject.scope.gradient_batches, codes.num_images // size)
    # Drawn, because the images of a split may be in the order of their classes.
    generator = torch.Generator().manual_seed(subject.scope.seed)
    order = torch.randperm(codes.num_images, generator=generator)[: count * size].to(codes.device)
    return [codes.images(index) for index in order.split(size)]


def shared_parameters(objective: Objective, last: int | None) -> list[list[nn.Parameter]]:
    """Returns the parameters of the embeddings and of blocks 1 … `last`, block by block.

    Without `last` foresight reads the final states, and the norm before them is counted to the last block.
    """
    model = objective.model
    embeddings = [*model.cls_embedding.parameters(), *model.tok_embeddings.parameters()]
    groups = [embeddings, *(list(block.parameters()) for block in model.layers[:last])]
    if last is None:
        groups[-1] += model.norm.parameters()
    return groups


def mixture_of(level: Level | None, weight: float, size: int) -> Mixture:
    """Returns how the gradients of a batch of B = `size` images add up. `weight` is λ."""
    first = size // 2 / size
    shares = torch.tensor([[first], [1 - first]]).double()  # (2, 1), of the halves in the batch
    heads = 0 if level is None else level.valid.shape[1]
    rows = torch.eye(2 * (1 + heads)).double().unflatten(0, (2, 1 + heads))  # (2, 1 + K, n)
    of_head = 0.0
    if level is not None:  # as `reduce_heads` does it
        of_head = weight if level.config.reduce == "sum" else weight / int(level.valid.any(0).sum())
    of_heads = rows[:, 1:]  # (2, K, n)
    return Mixture(
        shares * rows[:, 0], shares * of_heads.sum(1) * of_head, (shares[:, None] * of_heads).sum(0)
    )


# ---- gradients


def gram_matrices(
    model: ARModel,
    level: Level | None,
    groups: Sequence[Sequence[nn.Parameter]],
    batches: Sequence[Batch],
) -> tuple[Tensor, Tensor]:
    """Returns the inner products of the gradients of all losses, float64 on the CPU.

    Those of each batch and block are (S, b, n, n); those of the gradients averaged over the batches are
    (b, n, n).
    """
    grams = []
    sums: list[Tensor] = []
    for batch in batches:
        first = len(batch.tokens) // 2
        halves = [half_gradients(model, level, groups, half) for half in halves_of(batch, first)]
        gradients = [torch.cat(of_group) for of_group in zip(*halves, strict=True)]  # (n, P) each
        grams.append(torch.stack([gram(rows) for rows in gradients]))
        sums = added(sums, gradients)
    pooled = torch.stack([gram(rows / len(batches)) for rows in sums])
    return torch.stack(grams), pooled


def halves_of(batch: Batch, first: int) -> list[Batch]:
    """Returns the first images of a batch, `first` of them, and the others."""
    sizes = [first, len(batch.tokens) - first]
    fields = (batch.tokens, batch.labels, batch.index, batch.view)
    return [Batch(*half) for half in zip(*(field.split(sizes) for field in fields), strict=True)]


def half_gradients(
    model: ARModel, level: Level | None, groups: Sequence[Sequence[nn.Parameter]], half: Batch
) -> list[Tensor]:
    """Returns the gradients (1 + K, P) with respect to each group of parameters.

    The rows are next-token prediction and, before λ, each head of foresight.
    """
    parameters = [parameter for group in groups for parameter in group]
    size = len(half.tokens)
    total: list[Tensor] = []
    for part in half.split(-(-size // PART)):
        losses = [loss * (len(part.tokens) / size) for loss in losses_of(model, level, part)]
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        total = added(total, [torch.stack(of_all).flatten(1) for of_all in zip(*rows, strict=True)])
    of_parameters = iter(total)
    return [torch.cat([next(of_parameters) for _ in group], 1) for group in groups]


def losses_of(model: ARModel, level: Level | None, part: Batch) -> list[Tensor]:
    """Returns the losses of a part of a batch, as the training step computes them: NTP, and each head."""
    states = model.trunk(part.tokens, part.labels, tap=None if level is None else level.tap)
    final = states.final.flatten(0, 1)  # (B·T, D)
    targets = part.tokens.flatten()
    mean = final.new_full(targets.shape, 1 / len(targets))  # (B·T,)
    ntp = linear_cross_entropy(final, model.output.weight, targets, mean)
    return [ntp] if level is None else [ntp, *level.losses(states, part, part.labels)]


def added(total: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """Returns the sums of two lists of tensors, of which the first may be empty."""
    return [one + other for one, other in zip(total, new, strict=True)] if total else new


def gram(rows: Tensor) -> Tensor:
    """Returns the inner products (n, n) of rows (n, P), in float64 on the CPU."""
    rows = rows.double()
    return (rows @ rows.T).cpu()


# ---- what they say


def summary(grams: Tensor, pooled: Tensor, mixture: Mixture) -> Finding:
    """Returns what inner products say that `gram_matrices` returned."""
    values: dict[str, float] = {}
    names = [f"@{block}" for block in range(grams.shape[1])] + [""]  # the last: all of them together
    grams = torch.cat([grams, grams.sum(1, keepdim=True)], 1)  # (S, b + 1, n, n)
    pooled = torch.cat([pooled, pooled.sum(0, keepdim=True)])
    is_on = bool(mixture.foresight.any())
    ntp = mixture.ntp.sum(0)
    foresight = mixture.foresight.sum(0)
    cosines = cosine(grams, ntp, foresight)  # (S, b + 1)
    for block, name in enumerate(names):
        of_block = grams[:, block]
        values[f"ceiling{name}"] = cosine(of_block, *mixture.ntp).mean().item()
        values[f"pooled_ceiling{name}"] = cosine(pooled[block], *mixture.ntp).item()
        if is_on:
            norms = (norm(of_block, ntp), norm(of_block, foresight))  # (S,) each
            values[f"cos{name}"] = cosines[:, block].mean().item()
            values[f"negative{name}"] = (cosines[:, block] < 0).double().mean().item()
            values[f"ratio{name}"] = quotient(norms[1], norms[0]).mean().item()
            values[f"magnitude{name}"] = magnitude_similarity(*norms).mean().item()
            values[f"cross{name}"] = cross(of_block, mixture).mean().item()
            values[f"pooled_cross{name}"] = cross(pooled[block], mixture).item()
    detail: dict[str, Any] = {"cosines": [], "heads": [], "between_heads": []}
    if is_on:
        detail["cosines"] = cosines[:, :-1].tolist()
        detail["heads"] = [cosine(grams, ntp, head).mean(0)[:-1].tolist() for head in mixture.heads]
    if len(mixture.heads) > 1:
        between = mean_between(grams, mixture.heads)
        values["between_heads"] = between[-1].item()
        detail["between_heads"] = between[:-1].tolist()
    return Finding(values, detail)


def norm(grams: Tensor, weights: Tensor) -> Tensor:
    """Returns the norm (…) of a weighted sum of the rows whose inner products are `grams` (…, n, n)."""
    return (grams @ weights @ weights).clamp(min=0).sqrt()


def cosine(grams: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Returns the cosine (…) of two weighted sums of the rows. It is 0 if one of them is zero."""
    return quotient(grams @ one @ other, norm(grams, one) * norm(grams, other))


def cross(grams: Tensor, mixture: Mixture) -> Tensor:
    """Returns the cosine (…) of one half's next-token prediction and the other's foresight, both ways."""
    first = cosine(grams, mixture.ntp[0], mixture.foresight[1])
    return (first + cosine(grams, mixture.ntp[1], mixture.foresight[0])) / 2


def quotient(one: Tensor, other: Tensor) -> Tensor:
    """Returns one / other, and 0 where `other` is 0."""
    return torch.where(other > 0, one / other, torch.zeros_like(one))


def magnitude_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Returns 2‖a‖‖b‖ / (‖a‖² + ‖b‖²): 1 if two norms are equal, near 0 if one is much larger."""
    return quotient(2 * one * other, one.square() + other.square())


def mean_between(grams: Tensor, heads: Tensor) -> Tensor:
    """Returns the cosine of two heads' gradients (b + 1,), averaged over pairs of heads and batches."""
    pairs = torch.combinations(torch.arange(len(heads)))
    cosines = [cosine(grams, heads[one], heads[other]) for one, other in pairs.tolist()]
    return torch.stack(cosines).mean((0, 1))
