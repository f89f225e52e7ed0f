"""The images of each step of vq_small's training, as a function of (seed, step).

Letters: N images of the data set; B batch; h, w pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirai_bench.data.images.crops import read_bases
from mirai_bench.data.images.datasets import Dataset
from mirai_bench.data.tokenizers.network import from_uint8
from mirai_bench.tokenizer.recipe import Recipe
from mirai_bench.utils.device import fits, send


class Batches:
    """The batches of a training, in a new order each epoch. The rest of an epoch's order is dropped."""

    def __init__(self, dataset: Dataset, size: int, recipe: Recipe, device: torch.device) -> None:
        """Takes images of `size` pixels, which stay on the device if they are in memory and fit there."""
        self.dataset = dataset
        self.size = size
        self.recipe = recipe
        self.device = device
        self.per_epoch = len(dataset) // recipe.batch_size
        self.pixels: Tensor | None = None  # uint8 (N, h, w, 3)
        if dataset.images is not None and fits(len(dataset) * size * size * 3, device):
            self.pixels = torch.from_numpy(read_bases(dataset, range(len(dataset)), size)).to(device)
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None  # what `_epoch` gave last

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the order (N,) of the images in an epoch, and which images (N,) it mirrors."""
        if self._last is None or self._last[0] != epoch:
            rng = np.random.default_rng((self.recipe.seed, epoch))
            order = rng.permutation(len(self.dataset))
            self._last = (epoch, order, rng.random(len(self.dataset)) < 0.5)
        return self._last[1:]

    def images(self, step: int) -> Tensor:
        """Returns the images of a step, float (B, 3, h, w) in [-1, 1], half of them mirrored."""
        epoch, position = divmod(step, self.per_epoch)
        order, mirrored = self._epoch(epoch)
        start = position * self.recipe.batch_size
        rows = order[start : start + self.recipe.batch_size]
        if self.pixels is None:
            pixels = send(read_bases(self.dataset, rows, self.size), self.device)
        else:
            pixels = self.pixels[send(rows, self.device)]
        images = from_uint8(pixels)
        flips = send(mirrored[rows], self.device)[:, None, None, None]
        return torch.where(flips, images.flip(-1), images).contiguous(memory_format=torch.channels_last)
