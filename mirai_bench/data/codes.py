"""The codes of a data set, and the batch of a training step as a function of (seed, step).

There is no loader and no state that would have to be saved: any step's batch can be asked for at
any time. Letters: N images, R views, T tokens, B batch. Codes are uint16 everywhere but in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.data_config import DataConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Batch, Place, Read
from mirai_bench.data.images.crops import all_views, base_sizes, read_bases
from mirai_bench.data.images.datasets import Dataset, Split, open_dataset
from mirai_bench.data.images.listing import renumbered
from mirai_bench.data.pixels import Pixels
from mirai_bench.data.shards import (
    AGAIN,
    ShardedArray,
    check_fields,
    check_intact,
    codes_folder,
    open_shards,
    read_array,
    read_manifest,
    split_data,
)
from mirai_bench.data.tokenizers import Tokenizer, load_tokenizer
from mirai_bench.utils.device import fits, send
from mirai_bench.utils.errors import UserError

# Images per forward pass of the tokenizer, and per batch of `images_of`.
ENCODE_BATCH = 256


class Codes:
    """The codes of all images of a split, with their labels and the pixels behind them.

    If `resident`, the codes become one tensor on the device. Otherwise they stay in their files,
    which are memory-mapped: reading a batch of ImageNet's takes 2 ms from the page cache.
    """

    def __init__(
        self,
        codes: ShardedArray,
        labels: np.ndarray,
        pixels: Pixels,
        manifest: dict[str, Any],
        device: torch.device,
        resident: bool = True,
    ) -> None:
        """`codes` has N rows uint16 (R, T), and `labels` N classes."""
        assert len(codes) == len(labels), "as many labels as images"
        self.num_images = len(labels)
        self.num_views, self.num_tokens = codes.shape
        self.pixels = pixels
        self.manifest = manifest
        self.device = device
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        self._codes = codes
        self._tokens = self._load() if resident else None
        # Two, for two trainings that take turns on the same codes.
        self.order = lru_cache(maxsize=2)(self._order)

    def _load(self) -> Tensor:
        """Returns all codes on the device, as int16 of the same bits: PyTorch knows little uint16."""
        shape = (self.num_images, self.num_views, self.num_tokens)
        tokens = torch.empty(shape, dtype=torch.int16, device=self.device)
        for start, part in zip(self._codes.starts, self._codes.parts, strict=False):
            tokens[start : start + len(part)] = torch.from_numpy(np.array(part).view(np.int16))
        return tokens

    @property
    def left_out(self) -> dict[str, int]:
        """Returns how much of the data was not encoded, or is not what its folder says, by the reason."""
        found = {
            **self.manifest.get("left_out", {}),  # of data that are encoded now, nothing is left out
            "unreadable images": len(self.manifest.get("skipped", ())),
            "classes without an image": len(self.manifest.get("empty_classes", ())),
            "classes of another number than their folder": renumbered(self.manifest.get("class_names", ())),
        }
        return {reason: count for reason, count in found.items() if count}

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of whole batches. The rest of an epoch's order is dropped."""
        most = self.num_images  # a larger batch would make an epoch of no step
        if batch_size > most:
            raise UserError(f"train.batch_size is {batch_size}, but there are {most} images: write less")
        return most // batch_size

    def _order(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the order of the images (N,) in an epoch, and the view (N,) of each image."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
        return rng.permutation(self.num_images), rng.integers(self.num_views, size=self.num_images)

    def place(self, step: int, *, seed: int, rank: int, world: int, batch_size: int) -> Place:
        """Returns where this rank's contiguous slice of the global batch of `step` (from 0) is.

        The global batch is the same for every number of ranks.
        """
        assert batch_size % world == 0, "the config has checked that the ranks divide the batch"
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        order, views = self.order(seed, epoch)
        share = batch_size // world  # images per rank
        start = position * batch_size + rank * share
        index = order[start : start + share]
        return Place(index, views[index])

    def reads_files(self, with_pixels: bool) -> bool:
        """Tells whether a batch, with pixels or without, is read from files."""
        return self._tokens is None or (with_pixels and self.pixels.from_files)

    def read(self, place: Place, with_pixels: bool) -> Read:
        """Reads from files what `batch_at` will need. It does nothing on the device."""
        tokens = self._codes.take(place.images, place.views) if self._tokens is None else None
        from_files = with_pixels and self.pixels.from_files
        return Read(tokens, self.pixels.read(place) if from_files else None)

    def batch_at(self, place: Place, read: Read, with_pixels: bool) -> Batch:
        """Returns the batch, of which `read` has read what is in files. It waits for nothing."""
        index, view = send(place.images, self.device), send(place.views, self.device)
        if self._tokens is not None:
            tokens = self.tokens_of(index, view)
        else:
            assert read.tokens is not None, "the codes are in files"
            tokens = self._sent(read.tokens)
        pixels = self.pixels.at(place, read.bases) if with_pixels else None
        return Batch(tokens, self.labels[index], index, view, pixels)

    def batch(self, **which: int) -> Batch:
        """Returns the batch that `place` finds, without pixels."""
        place = self.place(**which)
        return self.batch_at(place, self.read(place, False), False)

    def tokens_of(self, index: Tensor, view: Tensor) -> Tensor:
        """Returns the tokens long (B, T) of images (B,) and their views (B,)."""
        if self._tokens is not None:
            return as_tokens(self._tokens[index, view])
        return self._sent(self._codes.take(index.cpu().numpy(), view.cpu().numpy()))

    def _sent(self, codes: np.ndarray) -> Tensor:
        """Returns codes uint16 (B, T) from files as tokens on the device."""
        return as_tokens(send(codes.view(np.int16), self.device))

    def images(self, index: Tensor, view: int = 0) -> Batch:
        """Returns a view of these images, (B,) on the device."""
        views = torch.full_like(index, view)
        return Batch(self.tokens_of(index, views), self.labels[index], index, views)

    def of_view(self, view: int) -> Iterator[Tensor]:
        """Yields the tokens long (B, T) of this view of every image, in the order of the images."""
        for index in torch.arange(self.num_images, device=self.device).split(ENCODE_BATCH):
            yield self.tokens_of(index, torch.full_like(index, view))

    def all(self) -> tuple[Tensor, Tensor]:
        """Returns the tokens (N, T) of view 0 and the labels (N,), for held-out losses."""
        if self._tokens is not None:
            return as_tokens(self._tokens[:, 0]), self.labels
        first = np.concatenate([part[:, 0] for part in self._codes.parts]).astype(np.int64)
        return torch.from_numpy(first).to(self.device), self.labels


def as_tokens(codes: Tensor) -> Tensor:
    """Returns codes that are stored as int16 as long."""
    return codes.long() & 0xFFFF  # those above 32,767 are negative as int16


# ---- where codes come from


def open_codes(config: RunConfig, split: Split, device: torch.device) -> Codes:
    """Returns the codes of a split.

    Data sets that are embedded or generated are encoded now, other data must have been prepared.
    Raises UserError if the codes are not prepared, or are those of another configuration.
    """
    if config.data.needs_preparation:
        return _read_prepared(config, split, device)
    return _encode_now(config, split, device)


def _encode_now(config: RunConfig, split: Split, device: torch.device) -> Codes:
    dataset = open_dataset(config, split)
    data = split_data(config.data, split)
    rows = np.arange(len(dataset))
    bases = [read_bases(dataset, rows, size) for size in base_sizes(data)]
    codes = encode_bases(bases, data, load_tokenizer(config, device), device)
    pixels = Pixels(lambda: dataset, rows, data, device)
    manifest = {"dataset": dataset.identity}
    return Codes(ShardedArray([codes]), dataset.labels, pixels, manifest, device)


def _read_prepared(config: RunConfig, split: Split, device: torch.device) -> Codes:
    folder, manifest = read_manifest(config, split)
    shards = manifest["shards"]
    data = split_data(config.data, split)

    # 1. Pixels are stored (prepare --pixels) or read from the images, which are opened when they
    # are first needed.
    def open_images() -> Dataset:
        dataset = open_dataset(config, split)
        advice = "set machine.data to the images that the codes were prepared from"
        where = config.machine.data or Path(dataset.name)
        check_fields(where, dataset.identity, manifest["dataset"], advice)
        return dataset

    num_stored = len(base_sizes(data)) if manifest["pixels"] else 0
    stored = [open_shards(folder, shards, f".base{number}") for number in range(num_stored)]
    rows = read_array(folder, manifest, "rows")
    pixels = Pixels(open_images, rows, data, device, stored, config.machine.cpus)
    # 2. Codes are kept on the device if they fit.
    check_intact(folder, manifest, [f"shards/{name}.npy" for name in shards])
    codes = open_shards(folder, shards)
    labels = read_array(folder, manifest, "labels")
    if not len(codes) == len(labels) == len(rows) == manifest["num_images"]:
        raise UserError(f"{folder}: {len(codes)} codes, {len(labels)} labels and {len(rows)} rows: {AGAIN}")
    resident = fits(sum(part.nbytes for part in codes.parts), device)
    return Codes(codes, labels, pixels, manifest, device, resident)


def encode_bases(
    bases: Sequence[np.ndarray], data: DataConfig, tokenizer: Tokenizer, device: torch.device
) -> np.ndarray:
    """Returns the codes uint16 (n, R, T) of all views of n images.

    `bases` are the images' squares uint8 (n, S, S, 3), one array per crop range.
    """
    views = all_views([torch.from_numpy(base).to(device) for base in bases], data)
    # (n·R, s, s, 3) in parts, so that memory does not depend on n and R.
    codes = [tokenizer.encode(part).cpu() for part in views.flatten(0, 1).split(ENCODE_BATCH)]
    return torch.cat(codes).numpy().astype(np.uint16).reshape(len(views), data.num_views, -1)


def has_heldout_codes(config: RunConfig) -> bool:
    """Tells whether there are codes of images that no training step sees, for held-out losses.

    A data set of one's own (`folder`) has them if it was prepared with a validation split.
    """
    return config.data.dataset != "folder" or (codes_folder(config) / "heldout").is_dir()


def readable_rows(config: RunConfig, split: Split, dataset: Dataset) -> np.ndarray:
    """Returns the rows of the data set that can be read, as far as prepared codes know it, or all."""
    every = np.arange(len(dataset))
    if not dataset.files:
        return every
    try:
        folder, manifest = read_manifest(config, split)
    except UserError:  # not prepared: then the first image that cannot be read is an error
        return every
    return read_array(folder, manifest, "rows") if manifest["dataset"] == dataset.identity else every


def images_of(config: RunConfig, split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the images uint8 (B, s, s, 3) of a split and their labels (B,).

    Each image comes once, in the order of the data set, as its centre crop, whatever the views that
    training sees. Images that could not be read when the codes were prepared are left out. Raises
    UserError for another one.
    """
    dataset = open_dataset(config, split)
    readable = readable_rows(config, split, dataset)
    for start in range(0, len(readable), ENCODE_BATCH):
        rows = readable[start : start + ENCODE_BATCH]
        yield read_bases(dataset, rows, config.data.image_size), dataset.labels[rows]
