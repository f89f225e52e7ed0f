"""The pixels of a view, for teachers that look at images.

They come from the same bases and the same cut as the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.data_config import DataConfig
from mirai_bench.data.images.crops import base_sizes, cut, read_bases
from mirai_bench.data.images.datasets import Dataset
from mirai_bench.data.shards import ShardedArray


@dataclass(eq=False)
class Pixels:
    """The function (index, view) → pixels uint8 (B, s, s, 3).

    The bases of a data set that is in memory are kept on the device. Those of other data sets come
    from `stored` or, without it, from the image files, which are read and cropped again.
    """

    open_images: Callable[[], Dataset]
    """Opens the images when they are first needed."""
    rows: np.ndarray
    """Row of the data set (N,) of each index of the codes: corrupt images have no codes."""
    data: DataConfig
    """The crops and views."""
    device: torch.device
    """Device of the pixels."""
    stored: Sequence[ShardedArray] = ()
    """Bases that `prepare --pixels` stored, one array per crop range."""
    threads: int = 1
    """Number of threads that read image files."""
    resident: dict[int, Tensor] = field(default_factory=dict)
    """Bases of all images on the device, by crop range."""

    @cached_property
    def dataset(self) -> Dataset:
        """The images."""
        return self.open_images()

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that read image files."""
        return ThreadPoolExecutor(self.threads)

    @torch.compiler.disable  # it reads files and host memory, which no graph can hold
    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """Returns the pixels of these images (B,) in these views (B,)."""
        sizes = base_sizes(self.data)
        views = self.data.views
        size = self.data.image_size
        per_base = self.data.num_views // len(sizes)
        base = view // per_base  # (B,) crop range of each view
        inner = (view % per_base).to(self.device)  # (B,) view within its base
        # With one crop range there is nothing to tell apart, and no wait for the device.
        if len(sizes) == 1:
            return cut(self._bases(0, sizes[0], index), inner, size, views)
        out = torch.empty(len(index), size, size, 3, dtype=torch.uint8, device=self.device)
        for number in base.unique().tolist():
            chosen = base == number
            bases = self._bases(number, sizes[number], index[chosen])
            here = chosen.to(self.device)
            out[here] = cut(bases, inner[here], size, views)
        return out

    def _bases(self, number: int, size: int, index: Tensor) -> Tensor:
        """Returns the bases uint8 (B, S, S, 3) of crop range `number`, whose side S is `size`."""
        if self.stored:
            bases = self.stored[number].take(index.cpu().numpy())
        elif self.dataset.images is None:
            rows = self.rows[index.cpu().numpy()]
            parts = self.pool.map(lambda row: read_bases(self.dataset, [row], size), rows)
            bases = np.concatenate(list(parts))
        else:
            if number not in self.resident:
                all_bases = read_bases(self.dataset, self.rows, size)
                self.resident[number] = torch.from_numpy(all_bases).to(self.device)
            return self.resident[number][index.to(self.device)]
        return torch.from_numpy(bases).to(self.device)
