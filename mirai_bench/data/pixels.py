"""The pixels of a view, for teachers that look at images: the same bases and the same cut as the codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.run_config import Data
from mirai_bench.data.images.crops import VIEWS_PER_BASE, base_sizes, cut, read_bases
from mirai_bench.data.images.datasets import Dataset
from mirai_bench.data.shards import Joined


class Pixels:
    """(index, view) → uint8 (B, s, s, 3). `rows` maps an index of the codes to the data set's image (corrupt ones have no codes).

    Data sets that are in memory lie on the device, one array a crop range. Else the bases come from `stored` (one a crop range, made by
    prepare --pixels); without those each image file is read and cropped again, on `threads` threads.
    """

    def __init__(
        self,
        open_images: Callable[[], Dataset],
        rows: np.ndarray,
        data: Data,
        device: torch.device,
        stored: Sequence[Joined] = (),
        threads: int = 1,
    ) -> None:
        self.open_images, self.rows, self.data, self.device, self.threads = (
            open_images,
            rows,
            data,
            device,
            threads,
        )
        self.stored = stored
        self.resident: dict[int, Tensor] = {}

    @cached_property
    def dataset(self) -> Dataset:
        return self.open_images()

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)

    @torch.compiler.disable  # reading of files and host memory: nothing for a graph
    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        per_base, sizes, size = VIEWS_PER_BASE[self.data.views], base_sizes(self.data), self.data.image_size
        base, inner = view // per_base, (view % per_base).to(self.device)
        if len(sizes) == 1:
            return cut(self._bases(0, sizes[0], index), inner, size, self.data.views)
        out = torch.empty(len(index), size, size, 3, dtype=torch.uint8, device=self.device)
        for number in base.unique().tolist():
            chosen = base == number
            bases, here = self._bases(number, sizes[number], index[chosen]), chosen.to(self.device)
            out[here] = cut(bases, inner[here], size, self.data.views)
        return out

    def _bases(self, number: int, size: int, index: Tensor) -> Tensor:
        if self.stored:
            return torch.from_numpy(self.stored[number].take(index.cpu().numpy())).to(self.device)
        if self.dataset.images is not None:
            if number not in self.resident:
                self.resident[number] = torch.from_numpy(read_bases(self.dataset, self.rows, size)).to(
                    self.device
                )
            return self.resident[number][index.to(self.device)]
        parts = self.pool.map(
            lambda row: read_bases(self.dataset, [row], size), self.rows[index.cpu().numpy()]
        )
        return torch.from_numpy(np.concatenate(list(parts))).to(self.device)
