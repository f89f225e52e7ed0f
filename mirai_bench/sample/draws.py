"""The pure functions of sampling: random numbers, classes, guidance, and drawing a token.

Letters: B images, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.protocol import Protocol


def uniforms(seed: int, index: int, count: int) -> np.ndarray:
    """Returns `count` float64 numbers in [0, 1): the stream of image `index`.

    The first number is for the image's class; one per token follows.
    """
    # Philox is a counter-based generator: its key alone makes a stream of its own, and no image has
    # to wait for the numbers of others.
    return np.random.Generator(np.random.Philox(key=[seed, index])).random(count)


def draw_classes(protocol: Protocol, indices: Sequence[int], classes: int) -> Tensor:
    """Returns the class of each image, (B,) long: index mod classes, or a draw of its own."""
    if protocol.class_rule == "balanced":
        return torch.tensor([index % classes for index in indices])
    return torch.tensor([int(uniforms(protocol.seed, index, 1)[0] * classes) for index in indices])


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
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        outside = torch.zeros_like(outside).scatter(1, order, outside)  # back in the order of codes
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws codes (B,) from logits (B, V): inverts the cumulative distribution at `uniform` (B,).

    It is computed in float64, so that the batch size cannot tip a draw.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    # The last entry is 1 but for rounding. `right` skips codes of probability 0.
    targets = (uniform * cumulative[:, -1])[:, None]
    codes = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    # Rounding must not step past the last code that is not excluded.
    last = (logits > -torch.inf).long().cumsum(-1).argmax(-1)
    return torch.minimum(codes, last)
