"""A batch: which images it consists of, what of it was read from files, and the batch on the device.

Letters: B images, N images of the data set, R views, T tokens, s pixels of a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, on the device. All tensors are long."""

    tokens: Tensor
    """Tokens (B, T)."""
    labels: Tensor
    """Classes (B,)."""
    index: Tensor
    """Images (B,), 0 … N-1."""
    view: Tensor
    """Views (B,) of these images, 0 … R-1."""
    pixels: Tensor | None = None
    """Pixels uint8 (B, s, s, 3) of these views, if they were asked for."""

    def split(self, parts: int) -> list[Batch]:
        """Returns the batch as micro-batches, in order."""
        fields = (self.tokens, self.labels, self.index, self.view)
        pixels = [None] * parts if self.pixels is None else self.pixels.chunk(parts)
        chunks = zip(*(field.chunk(parts) for field in fields), pixels, strict=True)
        return [Batch(*chunk) for chunk in chunks]


class Place(NamedTuple):
    """Which images and views a batch consists of, on the host."""

    images: np.ndarray
    """Images (B,), 0 … N-1."""
    views: np.ndarray
    """Views (B,) of these images, 0 … R-1."""


class Read(NamedTuple):
    """What of a batch was read from files, on the host."""

    tokens: np.ndarray | None
    """Codes uint16 (B, T), if they are not on the device."""
    bases: list[np.ndarray] | None
    """What `Pixels.read` returned, if pixels are asked for and are not on the device."""
