"""Images to codes and back. Each tokenizer is one entry of TOKENIZERS.

A tokenizer is frozen, and its codes depend on nothing but its weights. Letters: B batch; h, w
pixels; H, W tokens, T = H·W; V codes of Z dimensions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.tokenizers import pixel, vq16, vq_small


class Tokenizer(Protocol):
    """Turns images into codes and back."""

    vocabulary: int
    """Number of codes V."""
    downsample: int
    """Number of pixels that a token covers along each side."""
    exact: bool
    """Whether decoded codes are the encoded images, of a data set that it is made for."""
    identity: dict[str, str]
    """Name, and sha256 of the weights. Two tokenizers of one identity give the same codes."""
    codebook: Tensor
    """What each code stands for, float (V, Z): like codes are near."""

    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes long (B, T), in raster order, of images uint8 (B, h, w, 3), RGB."""

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images uint8 (B, h, w, 3), RGB, of codes long (B, T) of square grids."""

    def vectors(self) -> Tensor:
        """Returns the vectors float32 (V, Z) that the codes stand for. Near vectors look alike."""


# Each is a module with two functions: load(config, device) → Tokenizer, and identity(config), which
# gives the identity of what `load` would load, without loading it.
TOKENIZERS = {"pixel": pixel, "vq_small": vq_small, "vq16": vq16}


def load_tokenizer(config: RunConfig, device: torch.device) -> Tokenizer:
    """Returns the tokenizer of a configuration.

    Raises UserError if its weight file is missing, or is that of another tokenizer.
    """
    return TOKENIZERS[config.tokenizer.name].load(config, device)


def tokenizer_identity(config: RunConfig) -> dict[str, str]:
    """Returns the `identity` of the tokenizer of a configuration, from the weight file only."""
    return TOKENIZERS[config.tokenizer.name].identity(config)
