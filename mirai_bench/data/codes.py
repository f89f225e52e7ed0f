"""Codes of a data set, and the batch of a training step as a pure function of (seed, step): no loader, no state, nothing to save.

Letters: N images, R views, T tokens, B batch. Codes are uint16 everywhere but in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import UserError
from ..tokenizer import Tokenizer, load_tokenizer
from .datasets import Dataset, Split, open_dataset
from .pixels import Pixels, read_bases
from .views import all_views, base_sizes

ENCODE_BATCH = 256  # images at a time through the tokenizer


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, on the device; all long."""

    tokens: Tensor
    """(B, T)"""
    labels: Tensor
    """(B,)"""
    index: Tensor
    """(B,) image, 0 … N-1"""
    view: Tensor
    """(B,) view of it, 0 … R-1"""

    def split(self, parts: int) -> list[Batch]:
        """Micro-batches, in order."""
        fields = (self.tokens, self.labels, self.index, self.view)
        return [Batch(*part) for part in zip(*(field.chunk(parts) for field in fields), strict=True)]


class Codes:
    """`parts` are uint16 arrays (n, R, T) that follow each other. They become one tensor on the device if `resident`, else they stay
    where they are (memory-mapped) and the next step's batch is fetched ahead into pinned memory."""

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        labels: np.ndarray,
        pixels: Pixels,
        manifest: dict[str, Any],
        device: torch.device,
        resident: bool = True,
    ) -> None:
        self.num_images = len(labels)
        self.num_views, self.num_tokens = parts[0].shape[1:]
        self.manifest, self.device, self.pixels = manifest, device, pixels
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        self._starts = np.cumsum([0] + [len(part) for part in parts])
        assert self._starts[-1] == self.num_images, "as many labels as images"
        self._parts = [] if resident else list(parts)
        self._tokens = self._join(parts) if resident else None
        self._orders: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._ahead: dict[tuple[int, ...], Future[Tensor]] = {}
        self._reader = None if resident else ThreadPoolExecutor(1)

    def _join(self, parts: Sequence[np.ndarray]) -> Tensor:
        joined = torch.empty(self.num_images, self.num_views, self.num_tokens, dtype=torch.int16, device=self.device)
        for start, part in zip(self._starts, parts, strict=False):
            joined[start : start + len(part)] = torch.from_numpy(part.view(np.int16).copy()).to(self.device)
        return joined

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches only: the rest of an epoch's order is dropped."""
        if batch_size > self.num_images:
            raise UserError(
                f"train.batch_size is {batch_size}, but there are {self.num_images} images: write {self.num_images} or less"
            )
        return self.num_images // batch_size

    def order(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """(order of the images (N,), view of each image (N,)) of an epoch, on the device."""
        if (seed, epoch) not in self._orders:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
            arrays = rng.permutation(self.num_images), rng.integers(self.num_views, size=self.num_images)
            while len(self._orders) >= 2:
                self._orders.pop(next(iter(self._orders)))
            order, views = (torch.from_numpy(a).to(self.device) for a in arrays)
            self._orders[seed, epoch] = order, views
        return self._orders[seed, epoch]

    def batch(self, *, seed: int, step: int, rank: int, world: int, batch_size: int) -> Batch:
        """Rank's contiguous slice of global step `step` (from 0); the global batch is the same for every world size."""
        assert batch_size % world == 0, "the config has checked that the ranks divide the batch"
        index, view = self._chosen(seed, step, rank, world, batch_size)
        if self._tokens is not None:
            tokens = self._tokens[index, view].long() & 0xFFFF
        else:
            tokens = self._fetch((seed, step, rank, world, batch_size))
        return Batch(tokens, self.labels[index], index, view)

    def _chosen(self, seed: int, step: int, rank: int, world: int, batch_size: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        order, views = self.order(seed, epoch)
        share = batch_size // world
        start = position * batch_size + rank * share
        index = order[start : start + share]
        return index, views[index]

    def _fetch(self, key: tuple[int, ...]) -> Tensor:
        """The tokens of batch `key`, and the reading of the next step's is begun."""
        assert self._reader is not None, "only codes that are not resident are fetched"
        seed, step, *rest = key
        present = self._ahead.pop(key, None) or self._reader.submit(self._gather, *self._chosen(*key))
        following = (seed, step + 1, *rest)
        self._ahead = {following: self._reader.submit(self._gather, *self._chosen(*following))}
        return present.result().to(self.device, non_blocking=True).long() & 0xFFFF

    def _gather(self, index: Tensor, view: Tensor) -> Tensor:
        rows, views = index.cpu().numpy(), view.cpu().numpy()
        part = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.stack([self._parts[p][r - self._starts[p], v] for p, r, v in zip(part, rows, views, strict=True)])
        tokens = torch.from_numpy(out.view(np.int16))
        return tokens.pin_memory() if self.device.type == "cuda" else tokens

    def all(self) -> tuple[Tensor, Tensor]:
        """(tokens (N, T) long of view 0, labels (N,)), for held-out losses."""
        if self._tokens is not None:
            return self._tokens[:, 0].long() & 0xFFFF, self.labels
        first = np.concatenate([np.asarray(part[:, 0]) for part in self._parts]).astype(np.int64)
        return torch.from_numpy(first).to(self.device), self.labels


def split_data(config: RunConfig, split: Split) -> RunConfig:
    """The config with the views of a split: held-out images are seen once, as their centre crop."""
    if split == "train":
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"views": "center"})})


def encode_images(
    dataset: Dataset, rows: Sequence[int], config: RunConfig, tokenizer: Tokenizer, device: torch.device
) -> np.ndarray:
    """→ uint16 (len(rows), R, T); raises what Dataset.read raises."""
    bases = [read_bases(dataset, rows, size) for size in base_sizes(config.data)]
    views = torch.cat([all_views([base[i] for base in bases], config.data) for i in range(len(rows))])
    codes = [tokenizer.encode(part.to(device)).cpu() for part in views.split(ENCODE_BATCH)]
    return torch.cat(codes).numpy().astype(np.uint16).reshape(len(rows), config.data.num_views, -1)


def _encode_now(config: RunConfig, split: Split, device: torch.device) -> Codes:
    dataset = open_dataset(config, split)
    tokenizer = load_tokenizer(config.tokenizer, device)
    codes = encode_images(dataset, range(len(dataset)), config, tokenizer, device)
    pixels = Pixels(lambda: dataset, np.arange(len(dataset)), config.data, device)
    manifest = {"dataset": dataset.identity, "class_names": list(dataset.class_names), "tokenizer": tokenizer.identity}
    return Codes([codes], dataset.labels, pixels, manifest, device)


def open_codes(config: RunConfig, split: Split, device: torch.device) -> Codes:
    """Digits are encoded here and now; other data are read as prepared. Raises UserError where they are not, or are of another config."""
    return _encode_now(split_data(config, split), split, device)


def images_of(config: RunConfig, split: Split, batch_size: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(uint8 (B, s, s, 3), labels (B,)) of a split in its own order: each image once, as its centre crop (ten-crop data too)."""
    dataset = open_dataset(config, split)
    for start in range(0, len(dataset), batch_size):
        rows = np.arange(start, min(start + batch_size, len(dataset)))
        yield read_bases(dataset, rows, config.data.image_size), dataset.labels[rows]
