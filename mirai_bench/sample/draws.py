"""TODO: sample.draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.protocol import Protocol


def uniforms(seed: int, index: int, count: int) -> np.ndarray:
    """(count) float64 in [0, 1): image `index`'s own stream, one number a token, after one for its class."""
    return np.random.Generator(np.random.Philox(key=[seed, index])).random(count)


def classes_of(protocol: Protocol, indices: Sequence[int], classes: int) -> Tensor:
    """(B,) long: index mod classes, or the image's own uniform draw."""
    if protocol.class_rule == "balanced":
        return torch.tensor([index % classes for index in indices])
    return torch.tensor([int(uniforms(protocol.seed, index, 1)[0] * classes) for index in indices])


def guide(logits: Tensor, scale: float) -> Tensor:
    """(2B, V) conditional then unconditional → (B, V): uncond + s·(cond - uncond)."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for all but the top_k codes (0: all), then for all but the smallest set of codes whose probability reaches top_p."""
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # the first code is never outside
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """logits (B, V), uniform (B,) → codes (B,) by inverting the cumulative distribution, in float64 so that a batch cannot tip a draw."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    codes = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    last = (
        (logits > -torch.inf).long().cumsum(-1).argmax(-1)
    )  # rounding must not step past the last allowed code
    return torch.minimum(codes, last)
