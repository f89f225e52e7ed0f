"""uint8 images to what a convolutional tokenizer sees, and back. This is the one place that decides the rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """Returns images uint8 (B, h, w, 3) as float (B, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Returns images float (B, 3, h, w) in [-1, 1] as uint8 (B, h, w, 3), rounded to the nearest level."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
