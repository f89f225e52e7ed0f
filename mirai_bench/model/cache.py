"""Positions of decoding: how a step reads and writes the cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor


class HostPosition:
    """A position that is a Python int. Attention reads the cache up to it. Used on a CPU."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.length = position + 1

    def read(self, table: Tensor, axis: int) -> Tensor:
        """Returns the slice of width 1 of `table` at the position."""
        return table.narrow(axis, self.position, 1)

    def write(self, table: Tensor, axis: int, new: Tensor) -> None:
        """Writes a slice of width 1 into `table` at the position."""
        table.narrow(axis, self.position, 1).copy_(new)

    def mask(self, dtype: torch.dtype) -> None:
        """Returns None, because no later position is read."""


class DevicePosition:
    """A position that is a tensor (1) on the device.

    Attention reads `length` positions through a mask. No shape depends on the position, so one
    recorded CUDA graph serves all positions below `length`.
    """

    def __init__(self, position: Tensor, length: int) -> None:
        self.position = position
        self.length = length

    def read(self, table: Tensor, axis: int) -> Tensor:
        """Returns the slice of width 1 of `table` at the position."""
        return table.index_select(axis, self.position)

    def write(self, table: Tensor, axis: int, new: Tensor) -> None:
        """Writes a slice of width 1 into `table` at the position."""
        table.index_copy_(axis, self.position, new)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Returns a mask (1, 1, 1, length) that is added to the scores of attention.

        It is -inf at later positions and 0 elsewhere.
        """
        is_later = torch.arange(self.length, device=self.position.device) > self.position
        scores = torch.zeros(self.length, dtype=dtype, device=is_later.device)
        return scores.masked_fill(is_later, -torch.inf)[None, None, None]


# The position of a decoding step in the cache. Position 0 is the class token, and `length` is the
# number of positions that attention reads.
CachePosition = HostPosition | DevicePosition
