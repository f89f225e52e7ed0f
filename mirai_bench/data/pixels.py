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
from mirai_bench.data.batch import Place
from mirai_bench.data.images.crops import base_sizes, cut, read_bases
from mirai_bench.data.images.datasets import Dataset
from mirai_bench.data.shards import ShardedArray
from mirai_bench.utils.device import send


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

    @property
    def from_files(self) -> bool:
        """Tells whether bases are read from files."""
        return bool(self.stored) or self.dataset.images is None

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """Returns the pixels of these images (B,) in these views (B,), and waits for the device."""
        return self.at(Place(index.cpu().numpy(), view.cpu().numpy()))

    def read(self, place: Place) -> list[np.ndarray]:
        """Reads the bases of these images from files: of each crop range uint8 (b, S, S, 3).

        b is the number of views that are of this range.
        """
        sizes = base_sizes(self.data)
        ranges = self._ranges(place.views)
        return [self._read(number, sizes[number], place.images[rows]) for number, rows in ranges]

    def at(self, place: Place, read: list[np.ndarray] | None = None) -> Tensor:
        """Returns the pixels of these images in these views, without waiting for the device.

        `read` is what `read` returned for them. It is called if that is not given.
        """
        if read is None and self.from_files:
            read = self.read(place)
        inner = place.views % self._per_range  # view within its base
        ranges = self._ranges(place.views)
        parts = []
        for part, (number, rows) in enumerate(ranges):
            if read is not None:
                bases = send(read[part], self.device)
            else:
                bases = self._all_bases(number)[send(place.images[rows], self.device)]
            parts.append(cut(bases, send(inner[rows], self.device), self.data.image_size, self.data.views))
        order = np.argsort(np.concatenate([rows for _, rows in ranges]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)[send(order, self.device)]

    @property
    def _per_range(self) -> int:
        """Returns the number of views of a crop range."""
        return self.data.num_views // len(base_sizes(self.data))

    def _ranges(self, view: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Returns each crop range that these views (B,) are of, and which of them are."""
        numbers = view // self._per_range
        return [(int(number), np.flatnonzero(numbers == number)) for number in np.unique(numbers)]

    def _read(self, number: int, size: int, index: np.ndarray) -> np.ndarray:
        """Returns the bases uint8 (b, S, S, 3) of crop range `number`, whose side S is `size`."""
        if self.stored:
            return self.stored[number].take(index)
        parts = self.pool.map(lambda row: read_bases(self.dataset, [row], size), self.rows[index])
        return np.concatenate(list(parts))

    def _all_bases(self, number: int) -> Tensor:
        """Returns the bases uint8 (N, S, S, 3) of a crop range of all images, on the device."""
        if number not in self.resident:
            bases = read_bases(self.dataset, self.rows, base_sizes(self.data)[number])
            self.resident[number] = torch.from_numpy(bases).to(self.device)
        return self.resident[number]
