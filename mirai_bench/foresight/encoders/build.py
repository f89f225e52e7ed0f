"""Bidirectional encoders for Mirai-I: batch → one feature a token cell, frozen, no gradient. One entry of ENCODERS each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mirai_bench.config.foresight import BlockCausal
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Batch, Codes
from mirai_bench.foresight.encoders.feature_cache import cached_features
from mirai_bench.foresight.encoders.masked_tokens import MaskedTokens, load_or_train
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.foresight.encoders.zoo import PIXEL_ENTRIES
from mirai_bench.utils.assets import assets_folder
from mirai_bench.utils.errors import unknown


class Encoder(Protocol):
    width: int

    def __call__(self, batch: Batch, codes: Codes) -> Tensor:
        """→ (B, T, Z), feature j of cell j."""


def block_causal_mask(cells: int, block: int, device: torch.device) -> Tensor:
    """(T, T) bool: cell i may see cell j when j's block of `block` cells (raster order) is i's own or an earlier one."""
    index = torch.arange(cells, device=device) // block
    return index[:, None] >= index


def context_mask(config: RunConfig, device: torch.device) -> Tensor | None:
    """Which cells each cell sees, (T, T) bool; None: all."""
    context = config.foresight.encoder.context
    cells = config.grid[0] * config.grid[1]
    return (
        block_causal_mask(cells, context.block_causal, device) if isinstance(context, BlockCausal) else None
    )


class TrainedTokens:
    """The masked-token transformer that the project trains on the same codes, at its last block; its context can be cut to block-causal.

    The cut is made on the frozen encoder, which was trained with full context: the paper's diagnostic on DINOv2.
    """

    def __init__(self, config: RunConfig, codes: Codes, device: torch.device) -> None:
        self.model = load_or_train(config, codes, device)
        self.width = config.model.width
        self.mask = context_mask(config, device)

    def __call__(self, batch: Batch, codes: Codes) -> Tensor:
        return self.model.states(batch.tokens, self.mask)


class RandomTokens:
    """Control: the same kind of network with random weights. It sees the whole image, but nothing was learned."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.model = MaskedTokens(config).init_weights(
            torch.Generator().manual_seed(config.foresight.teacher_seed), gain=1.0
        )
        self.model.requires_grad_(False).to(device)
        self.width = config.model.width

    def __call__(self, batch: Batch, codes: Codes) -> Tensor:
        return self.model.states(batch.tokens)


def pixels(config: RunConfig, codes: Codes, device: torch.device) -> Encoder:
    """A pretrained image encoder on the pixels of the same view; read from the feature cache where the config says so."""
    e = config.foresight.encoder
    mask, assets = context_mask(config, device), assets_folder(config)
    encoder = PixelEncoder(e.name, config.grid, device, weights=e.weights, assets=assets, cells=mask)
    return cached_features(encoder, config, codes, device) if e.cache else encoder


ENCODERS: dict[str, Callable[[RunConfig, Codes, torch.device], Encoder]] = {
    "masked_tokens": TrainedTokens,
    **dict.fromkeys(PIXEL_ENTRIES, pixels),
}


def build_encoder(config: RunConfig, codes: Codes, device: torch.device) -> Encoder:
    """The encoder that the config names. Raises UserError for an unknown name."""
    name = config.foresight.encoder.name
    if name.startswith("timm:"):
        return pixels(config, codes, device)
    if name not in ENCODERS:
        raise unknown("foresight encoder", name, [*ENCODERS, "timm:<model>"])
    return ENCODERS[name](config, codes, device)
