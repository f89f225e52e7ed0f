"""Images to codes and back. Each tokenizer is one entry of TOKENIZERS.

A tokenizer is frozen, and its codes depend on nothing but its weights. Letters: B batch; h, w
pixels; H, W tokens, T = H·W; V codes of Z dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.tokenizers import pixel, vq16, vq_small
from mirai_bench.utils import plugins
from mirai_bench.utils.hashing import digest, file_sha256


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


class Loader(Protocol):
    """Two functions, of a module or an object."""

    def load(self, config: RunConfig, device: torch.device) -> Tokenizer:
        """Returns the tokenizer of a configuration."""

    def identity(self, config: RunConfig) -> dict[str, str]:
        """Returns the identity of what `load` would load, without loading it."""


@dataclass(frozen=True)
class PluggedTokenizer:
    """The tokenizer of a plug-in, whose identity covers the plug-in's code and the weights."""

    name: str
    build: Callable[[RunConfig, torch.device], Tokenizer]
    weights: Callable[[RunConfig], Path | None]
    """Returns the weight file of a configuration, if the tokenizer has weights."""

    def load(self, config: RunConfig, device: torch.device) -> Tokenizer:
        """Returns the tokenizer of a configuration."""
        tokenizer = self.build(config, device)
        tokenizer.identity = self.identity(config)
        return tokenizer

    def identity(self, config: RunConfig) -> dict[str, str]:
        """Returns the identity of the tokenizer of a configuration."""
        code = plugins.identity_of([("tokenizer", self.name)])
        path = self.weights(config)
        weights = "no weights" if path is None else file_sha256(path)
        return {"name": self.name, "sha256": f"{weights}, code {digest(code)}"}


TOKENIZERS: dict[str, Loader] = {"pixel": pixel, "vq_small": vq_small, "vq16": vq16}


def load_tokenizer(config: RunConfig, device: torch.device) -> Tokenizer:
    """Returns the tokenizer of a configuration.

    Raises UserError if its weight file is missing, or is that of another tokenizer.
    """
    return TOKENIZERS[config.tokenizer.name].load(config, device)


def tokenizer_identity(config: RunConfig) -> dict[str, str]:
    """Returns the `identity` of the tokenizer of a configuration, from the weight file only."""
    return TOKENIZERS[config.tokenizer.name].identity(config)
