"""The tokenizer without weights: a token is the grey level of a pixel, in V equidistant levels."""

from __future__ import annotations

import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.errors import UserError


class Pixel:
    """Grey levels as codes.

    decode(encode(·)) is exact on images that hold only V grey levels, such as the digits with V =
    17.
    """

    downsample = 1
    exact = True

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.identity = {"name": f"pixel-{vocabulary}", "sha256": "no weights"}
        self.codebook = torch.linspace(0, 1, vocabulary)[:, None]  # grey levels

    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes long (B, T) of images uint8 (B, h, w, 3)."""
        grey = images.float().mean(-1)
        return (grey * (self.vocabulary - 1) / 255).round().long().flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images uint8 (B, h, w, 3) of codes long (B, T)."""
        grey = (codes * 255 / (self.vocabulary - 1)).round().to(torch.uint8)
        side = round(codes.shape[1] ** 0.5)
        # One channel becomes three equal ones.
        return grey.unflatten(1, (side, side)).unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()

    def vectors(self) -> Tensor:
        """Returns the grey levels as points (V, 2) of half a circle, from black to white.

        A level by itself would be a vector of one dimension, whose cosine is but a sign.
        """
        angles = torch.linspace(0, torch.pi, self.vocabulary)
        return torch.stack([angles.cos(), angles.sin()], 1)


def load(config: RunConfig, device: torch.device) -> Pixel:
    """Returns the tokenizer. Raises UserError if the configuration asks for what it cannot do."""
    if config.tokenizer.downsample != 1:
        raise UserError(f"tokenizer.downsample is {config.tokenizer.downsample} with pixel: write 1")
    vocabulary = config.tokenizer.vocabulary
    if vocabulary > 256:
        raise UserError(f"tokenizer.vocabulary is {vocabulary} with pixel: write 256 grey levels or fewer")
    return Pixel(vocabulary)


def identity(config: RunConfig) -> dict[str, str]:
    """Returns the identity of the tokenizer."""
    return Pixel(config.tokenizer.vocabulary).identity
