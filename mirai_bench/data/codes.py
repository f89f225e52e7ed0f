"""Codes of a data set, and the batch of a training step as a pure function of (seed, step): no loader, no state, nothing to save.

Letters: N images, R views, T tokens, B batch. Codes are uint16 everywhere but in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.run_config import Data, RunConfig
from mirai_bench.data.images.crops import all_views, base_sizes, read_bases
from mirai_bench.data.images.datasets import Dataset, Split, open_dataset
from mirai_bench.data.pixels import Pixels
from mirai_bench.data.shards import (
    Joined,
    codes_folder,
    expected,
    open_shards,
    read_manifest,
    refuse_difference,
    split_data,
)
from mirai_bench.data.tokenizers import Tokenizer, load_tokenizer
from mirai_bench.utils.device import fits
from mirai_bench.utils.errors import UserError

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
    """`codes` has rows uint16 (R, T). They become one tensor on the device if `resident`; else they stay where they are (memory-mapped),
    and the next step's batch is read ahead into pinned memory."""

    def __init__(
        self,
        codes: Joined,
        labels: np.ndarray,
        pixels: Pixels,
        manifest: dict[str, Any],
        device: torch.device,
        resident: bool = True,
    ) -> None:
        assert len(codes) == len(labels), "as many labels as images"
        self.num_images = len(labels)
        self.num_views, self.num_tokens = codes.shape
        self.manifest, self.device, self.pixels = manifest, device, pixels
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        self._codes = codes
        self._tokens = self._load() if resident else None
        self._orders: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._ahead: dict[tuple[int, ...], Future[Tensor]] = {}
        self._reader = ThreadPoolExecutor(1)  # starts no thread before it is used

    def _load(self) -> Tensor:
        tokens = torch.empty(
            self.num_images, self.num_views, self.num_tokens, dtype=torch.int16, device=self.device
        )
        for start, part in zip(self._codes.starts, self._codes.parts, strict=False):
            tokens[start : start + len(part)] = torch.from_numpy(np.array(part).view(np.int16))
        return tokens

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
        """The tokens of batch `key`; the reading of the next step's is begun."""
        seed, step, *rest = key
        present = self._ahead.pop(key, None) or self._reader.submit(self._read, *self._chosen(*key))
        following = (seed, step + 1, *rest)
        self._ahead = {following: self._reader.submit(self._read, *self._chosen(*following))}
        return present.result().to(self.device, non_blocking=True).long() & 0xFFFF

    def _read(self, index: Tensor, view: Tensor) -> Tensor:
        tokens = torch.from_numpy(self._codes.take(index.cpu().numpy(), view.cpu().numpy()).view(np.int16))
        return tokens.pin_memory() if self.device.type == "cuda" else tokens

    def all(self) -> tuple[Tensor, Tensor]:
        """(tokens (N, T) long of view 0, labels (N,)), for held-out losses."""
        if self._tokens is not None:
            return self._tokens[:, 0].long() & 0xFFFF, self.labels
        first = np.concatenate([part[:, 0] for part in self._codes.parts]).astype(np.int64)
        return torch.from_numpy(first).to(self.device), self.labels


def encode_bases(
    bases: Sequence[np.ndarray], data: Data, tokenizer: Tokenizer, device: torch.device
) -> np.ndarray:
    """Bases uint8 (n, S, S, 3) for each crop range → uint16 (n, R, T)."""
    views = all_views([torch.from_numpy(base).to(device) for base in bases], data)
    codes = [tokenizer.encode(part).cpu() for part in views.flatten(0, 1).split(ENCODE_BATCH)]
    return torch.cat(codes).numpy().astype(np.uint16).reshape(len(views), data.num_views, -1)


def _encode_now(config: RunConfig, split: Split, device: torch.device) -> Codes:
    dataset = open_dataset(config, split)
    bases = [read_bases(dataset, range(len(dataset)), size) for size in base_sizes(config.data)]
    codes = encode_bases(bases, config.data, load_tokenizer(config.tokenizer, device), device)
    pixels = Pixels(lambda: dataset, np.arange(len(dataset)), config.data, device)
    manifest = expected(config, split) | {
        "dataset": dataset.identity,
        "class_names": list(dataset.class_names),
    }
    return Codes(Joined([codes]), dataset.labels, pixels, manifest, device)


def _open_images(config: RunConfig, split: Split, manifest: dict[str, Any]) -> Dataset:
    dataset = open_dataset(config, split)
    advice = "set machine.data to the images that the codes were prepared from"
    refuse_difference(
        config.machine.data or Path(dataset.name), dataset.identity, manifest["dataset"], advice
    )
    return dataset


def _read_prepared(config: RunConfig, split: Split, device: torch.device) -> Codes:
    folder, manifest = read_manifest(config, split)
    config = split_data(config, split)
    codes = open_shards(folder, manifest["shards"])
    labels, rows = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("labels", "rows"))
    bases = range(len(base_sizes(config.data))) if manifest["pixels"] else ()
    stored = [open_shards(folder, manifest["shards"], f".base{number}") for number in bases]
    pixels = Pixels(
        lambda: _open_images(config, split, manifest), rows, config.data, device, stored, config.machine.cpus
    )
    return Codes(
        codes, labels, pixels, manifest, device, fits(sum(part.nbytes for part in codes.parts), device)
    )


def open_codes(config: RunConfig, split: Split, device: torch.device) -> Codes:
    """Digits are encoded here and now; other data are read as prepared. Raises UserError where they are not, or are of another config."""
    if config.data.dataset == "digits":
        return _encode_now(split_data(config, split), split, device)
    return _read_prepared(config, split, device)


def has_heldout(config: RunConfig) -> bool:
    """Whether the data has images that no training step sees: digits and cifar10 do, a folder does where it was prepared with a val."""
    return config.data.dataset != "folder" or (codes_folder(config) / "heldout").is_dir()


def images_of(
    config: RunConfig, split: Split, batch_size: int = 256
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(uint8 (B, s, s, 3), labels (B,)) of a split in its own order: each image once, as its centre crop (ten-crop data too)."""
    dataset = open_dataset(config, split)
    for start in range(0, len(dataset), batch_size):
        rows = np.arange(start, min(start + batch_size, len(dataset)))
        yield read_bases(dataset, rows, config.data.image_size), dataset.labels[rows]
