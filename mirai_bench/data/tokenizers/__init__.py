"""images ↔ codes. One entry of TOKENIZERS each; a tokenizer is frozen, and its codes depend on its weights alone.

Letters: B batch, h, w pixels, H, W tokens, T = H·W, V codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mirai_bench.config import run_config as settings
from mirai_bench.data.tokenizers import pixel, vq16, vq_small
from mirai_bench.utils.errors import unknown


class Tokenizer(Protocol):
    vocabulary: int
    downsample: int
    """pixels a token covers along each side"""
    identity: dict[str, str]
    """name and sha256 of the weights: two tokenizers of one identity give the same codes"""

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, h, w, 3) RGB → long (B, T), raster order."""

    def decode(self, codes: Tensor) -> Tensor:
        """long (B, T) of a square grid → uint8 (B, h, w, 3) RGB."""


class Entry(NamedTuple):
    load: Callable[[settings.Tokenizer, torch.device], Tokenizer]
    identity: Callable[[settings.Tokenizer], dict[str, str]]
    """of what load would load, without loading it"""


TOKENIZERS = {
    "pixel": Entry(pixel.load, pixel.identity),
    "vq_small": Entry(vq_small.load, vq_small.identity),
    "vq16": Entry(vq16.load, vq16.identity),
}


def _entry(config: settings.Tokenizer) -> Entry:
    if config.name not in TOKENIZERS:
        raise unknown("tokenizer", config.name, TOKENIZERS)
    return TOKENIZERS[config.name]


def load_tokenizer(config: settings.Tokenizer, device: torch.device) -> Tokenizer:
    """Raises UserError where the weight file is missing or is of another tokenizer than the config says."""
    return _entry(config).load(config, device)


def tokenizer_identity(config: settings.Tokenizer) -> dict[str, str]:
    """The loaded tokenizer's `identity`, from the weight file alone."""
    return _entry(config).identity(config)
