"""Axis `foresight_source`: who gives the features. A source maps a batch to (B, T, Z), without gradient.

Explicit sources (`ema`, `frozen`) are causal models: feature s is their state s. The others are bidirectional: feature j is cell j.
A source is no module: none of its parameters are the student's, none is saved, none is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Batch, Codes
from mirai_bench.foresight.encoders.build import Encoder, RandomTokens, build_encoder
from mirai_bench.model.transformer import ARModel


@dataclass(frozen=True)
class Parts:
    """What a source may be made of. `frozen` is loaded only where the source asks for it."""

    config: RunConfig
    ema: ARModel
    codes: Codes
    frozen: Callable[[], ARModel]
    device: torch.device


class Source(Protocol):
    width: int

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """batch, and the labels (B,) the student was given (null class where dropped) → (B, T, Z)."""


class CausalStates:
    """Mirai-E: the state after block `teacher_layer` of a model of the student's kind; only its first blocks run."""

    def __init__(self, parts: Parts, teacher: ARModel) -> None:
        f = parts.config.foresight
        self.teacher, self.share_label_drop = teacher, f.share_label_drop
        self.layer = resolve_layer(f.teacher_layer or f.layer, teacher.config.depth)
        self.width = teacher.config.width

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        return self.teacher.states(
            batch.tokens, labels if self.share_label_drop else batch.labels, self.layer
        )


class EncoderFeatures:
    """Mirai-I: the feature of a bidirectional encoder at each cell."""

    def __init__(self, encoder: Encoder, codes: Codes) -> None:
        self.encoder, self.codes, self.width = encoder, codes, encoder.width

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        return self.encoder(batch, self.codes)


class Shuffled:
    """Control: right features, wrong image; each image of the batch is given its neighbour's."""

    def __init__(self, inner: Source) -> None:
        self.inner, self.width = inner, inner.width

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        return self.inner(batch, labels).roll(1, 0)


def ema(parts: Parts) -> Source:
    return CausalStates(parts, parts.ema)


def frozen(parts: Parts) -> Source:
    return CausalStates(parts, parts.frozen())


def encoder(parts: Parts) -> Source:
    return EncoderFeatures(build_encoder(parts.config, parts.codes, parts.device), parts.codes)


def random(parts: Parts) -> Source:
    return EncoderFeatures(RandomTokens(parts.config, parts.device), parts.codes)


def shuffled(parts: Parts) -> Source:
    return Shuffled(SOURCES[parts.config.foresight.shuffled_of](parts))


SOURCES: dict[str, Callable[[Parts], Source]] = {
    "ema": ema,
    "frozen": frozen,
    "encoder": encoder,
    "random": random,
    "shuffled": shuffled,
}
