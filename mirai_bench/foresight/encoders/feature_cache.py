"""The features of an image encoder for every view of a small data set, computed once.

A training step on them costs nothing for the teacher. They are stored in half precision.

Letters: N images, R views, B batch, T cells, Z feature width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.data_config import DataConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Batch, Place
from mirai_bench.data.codes import Codes
from mirai_bench.data.images.crops import crop_rule
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.utils.arrays import UNREADABLE
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import fits
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import cached, write_json
from mirai_bench.utils.hashing import digest

log = logging.getLogger(__name__)

FORMAT = 1  # of the stored file; part of the digest, so that an older file is made again
BATCH_SIZE = 128  # views in one forward pass of the encoder
BATCHES_PER_MARK = 20  # an interrupted computation loses as many batches at most
MARK = "mark.json"  # how far an unfinished file has come


class CachedFeatures:
    """A source that looks up features (N, R, T, Z) in float16.

    They are kept on a GPU if they fit in half of its free memory. Elsewhere the file is
    memory-mapped.
    """

    def __init__(self, path: Path, device: torch.device, seconds: float | None = None) -> None:
        self.one_off_seconds = seconds
        self.stored = np.load(path, mmap_mode="r", allow_pickle=False)
        self.width = self.stored.shape[-1]
        self.device = device
        # A mapped file cannot be read within a compiled graph. The compiler is imported here and not
        # with the module: that takes 1.5 s, which a command that trains nothing does without.
        self._from_file = torch.compiler.disable(self._read)
        self.resident: Tensor | None = None
        if device.type == "cuda" and fits(self.stored.nbytes, device):
            self.resident = torch.from_numpy(np.array(self.stored)).to(device)

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the features (B, T, Z) of the batch's views, in float32."""
        if self.resident is not None:
            return self.resident[batch.index, batch.view].float()
        return self._from_file(batch)

    def _read(self, batch: Batch) -> Tensor:
        rows = self.stored[batch.index.cpu().numpy(), batch.view.cpu().numpy()]
        return torch.from_numpy(rows).to(self.device).float()


def identity(encoder: PixelEncoder, data: DataConfig, codes: Codes) -> dict[str, Any]:
    """Returns all that decides the features: the encoder with its weights, crops, and images."""
    dataset = codes.manifest["dataset"]
    has_all_images = codes.num_images == dataset["images"]
    return {
        "format": FORMAT,
        "encoder": encoder.identity(),
        "views": {"rule": crop_rule(data), "views": codes.num_views},
        "data": dataset,
        "rows": "all" if has_all_images else digest(codes.pixels.rows.tolist()),
    }


def cached_features(
    encoder: PixelEncoder, config: RunConfig, codes: Codes, device: torch.device
) -> CachedFeatures:
    """Returns the cached features of this encoder on this data.

    They are computed first if there is no cache.

    Raises UserError if the disk is too small for the cache.
    """
    record = identity(encoder, config.data, codes)

    def build(folder: Path) -> None:
        seconds = write_features(encoder, codes, folder)
        (folder / "record.json").write_text(json.dumps(record | {"seconds": seconds}, indent=2))

    path = config.machine.runs.absolute() / "cache" / f"features-{digest(record)}"
    folder = cached(path, build, resumes=True)
    # Older files lack the seconds.
    seconds = json.loads((folder / "record.json").read_bytes()).get("seconds")
    return CachedFeatures(folder / "features.npy", device, seconds)


def write_features(encoder: PixelEncoder, codes: Codes, folder: Path) -> float:
    """Writes the features of every view to features.npy, (N, R, T, Z) float16.

    It goes on where an interrupted call stopped. Returns the seconds of all calls.

    Raises UserError if the disk is too small, or if half precision cannot hold the features.
    """
    file = folder / "features.npy"
    cells = encoder.grid[0] * encoder.grid[1]
    shape = (codes.num_images, codes.num_views, cells, encoder.width)
    total = codes.num_images * codes.num_views
    done, seconds, hashed = _read_mark(folder, shape)
    # 1. The disk.
    num_bytes = (total - done) * cells * encoder.width * 2
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"The feature cache of {encoder.name} needs {num_bytes / 1e9:.1f} GB, but "
            f"{folder.parent} has {free / 1e9:.1f} GB free: write foresight.encoder.cache: false, or "
            "machine.runs on a larger disk"
        )
    size = f"{num_bytes / 1e9:.2f} GB"
    earlier = f"; {done} are done" if done else ""
    log.info(f"computing the features of {encoder.name} for {total} views, once ({size}{earlier})")
    # 2. The file, seen as one row per view.
    if done:
        out = np.lib.format.open_memmap(file, "r+")
    else:
        out = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        # The whole place is taken now: a mapped file that finds the disk full ends the process.
        if sys.platform == "linux":
            with open(file, "rb+") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    rows = out.reshape(total, cells, encoder.width)
    # 3. The features, one batch of views at a time.
    began = time.perf_counter() - seconds
    starts = range(0, total, BATCH_SIZE)
    missing = starts[done // BATCH_SIZE :]
    before = len(starts) - len(missing)  # batches
    for start in progress(missing, f"{encoder.name} features", len(starts), "batches", before):
        chosen = np.arange(start, min(start + BATCH_SIZE, total))
        images = codes.pixels.at(Place(chosen // codes.num_views, chosen % codes.num_views))
        # Contiguous, for the hash: an encoder may hand over a view of (B, C, h, w), as VGG16 does on a GPU.
        features = encoder.features(images).half().cpu().contiguous().numpy()
        if not np.isfinite(features).all():
            raise UserError(
                f"{encoder.name} gives features beyond half precision (65,504): write "
                "foresight.encoder.cache: false"
            )
        rows[start : start + len(features)] = features
        hashed.update(features.data)
        batches = start // BATCH_SIZE + 1
        if batches % BATCHES_PER_MARK == 0:
            out.flush()  # first, so that the mark never counts what is not on the disk
            mark = {"views": batches * BATCH_SIZE, "seconds": time.perf_counter() - began}
            write_json(folder / MARK, mark | {"sha256": hashed.hexdigest()})
    out.flush()
    (folder / MARK).unlink(missing_ok=True)
    return time.perf_counter() - began


def _read_mark(folder: Path, shape: tuple[int, ...]) -> tuple[int, float, hashlib._Hash]:
    """Returns how many views are written, the seconds that they took, and the hash of these views.

    Both numbers are 0 at first, and if what is written is not what was.
    """
    hashed = hashlib.sha256()
    try:
        mark = json.loads((folder / MARK).read_bytes())
        stored = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        if stored.shape == shape and stored.dtype == np.float16:
            rows = stored.reshape(-1, *shape[2:])[: mark["views"]]
            for start in range(0, len(rows), BATCH_SIZE):
                hashed.update(np.ascontiguousarray(rows[start : start + BATCH_SIZE]).data)
            if hashed.hexdigest() == mark["sha256"]:
                return mark["views"], mark["seconds"], hashed
        log.warning(f"{folder} is damaged: it is begun again")
    except UNREADABLE:
        pass  # nothing is written yet, or by an earlier version
    return 0, 0.0, hashlib.sha256()
