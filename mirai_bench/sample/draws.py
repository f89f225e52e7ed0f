"""The pure functions of sampling: random numbers, classes, guidance, and drawing a token.

Letters: B images, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.protocol import Protocol

CODES_OF_BLOCK = 128  # or fewer, if that does not divide the vocabulary
BELOW_ONE = 1 - 2**-53  # the largest float64 below 1: a number times this is a smaller one


def uniforms(seed: int, run_seed: int, index: int, count: int) -> np.ndarray:
    """Returns `count` float64 numbers in [0, 1): the stream of image `index`.

    `seed` is the protocol's, and `run_seed` the run's `seeds.sampling`. The first number is for the
    image's class; one per token follows.
    """
    # Philox is a counter-based generator: its key and the upper words of its counter make a stream
    # of its own, and no image has to wait for the numbers of others.
    bits = np.random.Philox(key=[seed, index], counter=[0, 0, 0, run_seed])
    return np.random.Generator(bits).random(count)


def draw_classes(protocol: Protocol, run_seed: int, indices: Sequence[int], classes: int) -> Tensor:
    """Returns the class of each image, (B,) long: index mod classes, or a draw of its own.

    `run_seed` is the run's `seeds.sampling`.
    """
    if protocol.class_rule == "balanced":
        return torch.tensor([index % classes for index in indices])
    first = [uniforms(protocol.seed, run_seed, index, 1)[0] for index in indices]
    return torch.tensor([int(number * classes) for number in first])


def guide(logits: Tensor, scale: float) -> Tensor:
    """Applies classifier-free guidance: uncond + s · (cond - uncond), (B, V).

    `logits` is (2B, V), the conditional ones first and then the unconditional ones.
    """
    conditional, unconditional = logits.chunk(2)  # (B, V) each
    return unconditional + scale * (conditional - unconditional)


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sets the logits of excluded codes to -inf.

    `top_k` keeps the most probable codes (0 keeps all). Then `top_p` keeps the smallest set of
    codes whose probability reaches it.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]  # (B, 1). Codes that tie with it stay.
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # Outside is what comes after the mass is reached. The first code never is.
        outside = cumulative(probabilities) - probabilities >= top_p
        outside = torch.zeros_like(outside).scatter(1, order, outside)  # back in the order of codes
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def in_blocks(x: Tensor) -> Tensor:
    """Returns x (B, V) as n blocks of m neighbours, (B, n, m)."""
    return x.unflatten(1, (-1, math.gcd(x.shape[1], CODES_OF_BLOCK)))


def cumulative(probabilities: Tensor) -> Tensor:
    """Returns the cumulative sums of each row, (B, V)."""
    if not torch.compiler.is_compiling():
        return probabilities.cumsum(-1)
    # For a GPU torch 2.11 fails to compile cumulative sums of long rows.
    inside = in_blocks(probabilities).cumsum(-1)  # (B, n, m)
    of_blocks = inside[:, :, -1:]  # (B, n, 1)
    return (inside + (of_blocks.cumsum(1) - of_blocks)).flatten(1)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws codes (B,) from logits (B, V): inverts the cumulative distribution at `uniform` (B,).

    It is computed in float64, so that the batch size cannot tip a draw.
    """
    # First which block of codes, and then which code of it. Sums of all codes would have to be
    # written and read again; those of the blocks are few, and so are those of one block.
    masses = (logits.double() - logits.amax(-1, keepdim=True)).exp()  # (B, V), the largest is 1
    blocks = in_blocks(masses)  # (B, n, m)
    size = blocks.shape[2]
    of_blocks = blocks.sum(-1)  # (B, n)
    ends = of_blocks.cumsum(-1)  # (B, n)
    target = uniform[:, None] * ends[:, -1:]  # (B, 1)
    block = interval(ends, target)  # (B, 1)
    start = (ends - of_blocks).gather(1, block)  # (B, 1)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, size))[:, 0]  # (B, m)
    ends = inside.cumsum(-1)  # (B, m)
    # Rounding must not step past the last code that is not excluded.
    target = torch.minimum(target - start, ends[:, -1:] * BELOW_ONE)
    return (block * size + interval(ends, target))[:, 0]


def interval(ends: Tensor, target: Tensor) -> Tensor:
    """Returns the first of n intervals that ends (B, n) beyond `target` (B, 1), as (B, 1)."""
    # `right` skips intervals of width 0. Where the ends are NaN, it skips all.
    return torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)
