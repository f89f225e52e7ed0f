"""No tokenizer at all: a token is a pixel's grey level, quantised to V equidistant levels."""

from __future__ import annotations

import torch
from torch import Tensor

from mirai_bench.config import run_config as settings
from mirai_bench.utils.errors import UserError


class Pixel:
    """decode(encode(·)) is exact on images that hold V grey levels only, such as the digits with V = 17."""

    downsample = 1

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.identity = {"name": f"pixel-{vocabulary}", "sha256": "no weights"}

    def encode(self, images: Tensor) -> Tensor:
        grey = images.float().mean(-1)
        return (grey * (self.vocabulary - 1) / 255).round().long().flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        grey = (codes * 255 / (self.vocabulary - 1)).round().to(torch.uint8)
        side = round(codes.shape[1] ** 0.5)
        return grey.unflatten(1, (side, side)).unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()


def load(config: settings.Tokenizer, device: torch.device) -> Pixel:
    if config.downsample != 1:
        raise UserError(f"tokenizer.downsample is {config.downsample} with the pixel tokenizer: write 1")
    if config.vocabulary > 256:
        raise UserError(
            f"tokenizer.vocabulary is {config.vocabulary} with the pixel tokenizer: write 256 grey levels or fewer"
        )
    return Pixel(config.vocabulary)


def identity(config: settings.Tokenizer) -> dict[str, str]:
    return Pixel(config.vocabulary).identity
