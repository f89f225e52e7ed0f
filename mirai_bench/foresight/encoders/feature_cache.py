"""Feature cache: an image encoder's features of every view of a small data set, computed once; training then pays nothing for the teacher.

Letters: N images, R views, B batch, T cells, Z feature width.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Batch, Codes
from mirai_bench.data.images.crops import crop_rule
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import fits
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import cached
from mirai_bench.utils.hashing import digest

log = logging.getLogger(__name__)

FORMAT = 1


BATCH_SIZE = 128  # views at a time through the encoder


class CachedFeatures:
    """An encoder that looks its features up: float16 (N, R, T, Z), on the device where they fit in half of its free memory, else mapped."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.stored = np.load(path, mmap_mode="r", allow_pickle=False)
        self.width, self.device = self.stored.shape[-1], device
        on_device = device.type == "cuda" and fits(self.stored.nbytes, device)
        self.resident = torch.from_numpy(np.array(self.stored)).to(device) if on_device else None

    @torch.compiler.disable  # reading of a mapped file
    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        if self.resident is not None:
            return self.resident[batch.index, batch.view].float()
        rows = self.stored[batch.index.cpu().numpy(), batch.view.cpu().numpy()]
        return torch.from_numpy(rows).to(self.device).float()


def identity(encoder: PixelEncoder, config: RunConfig, codes: Codes) -> dict[str, Any]:
    """All that decides the features: the encoder and its weights, the crops, the images."""
    rows = (
        digest(codes.pixels.rows.tolist())
        if codes.num_images != codes.manifest["dataset"]["images"]
        else "all"
    )
    views = {"rule": crop_rule(config.data), "views": codes.num_views}
    return {
        "format": FORMAT,
        "encoder": encoder.identity(),
        "views": views,
        "data": codes.manifest["dataset"],
        "rows": rows,
    }


def cached_features(
    encoder: PixelEncoder, config: RunConfig, codes: Codes, device: torch.device
) -> CachedFeatures:
    """The cache of this encoder on this data, made first where it is not there. Raises UserError where the disk is too small for it."""
    record = identity(encoder, config, codes)

    def build(folder: Path) -> None:
        write_features(encoder, codes, folder)
        (folder / "record.json").write_text(json.dumps(record, indent=2))

    folder = cached(config.machine.runs.absolute() / "cache" / f"features-{digest(record)}", build)
    return CachedFeatures(folder / "features.npy", device)


def write_features(encoder: PixelEncoder, codes: Codes, folder: Path) -> None:
    """features.npy, float16 (N, R, T, Z). Raises UserError for a full disk and for features that half precision cannot hold."""
    cells, total = encoder.grid[0] * encoder.grid[1], codes.num_images * codes.num_views
    num_bytes, free = total * cells * encoder.width * 2, shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"The feature cache of {encoder.name} needs {num_bytes / 1e9:.1f} GB, but {folder.parent} has {free / 1e9:.1f} GB free: write "
            "foresight.encoder.cache: false, or machine.runs on a larger disk"
        )
    log.info(f"computing the features of {encoder.name} for {total} views, once ({num_bytes / 1e9:.2f} GB)")
    out = np.lib.format.open_memmap(
        folder / "features.npy", "w+", np.float16, (codes.num_images, codes.num_views, cells, encoder.width)
    )
    rows = out.reshape(total, cells, encoder.width)
    for start in progress(
        range(0, total, BATCH_SIZE), f"{encoder.name} features", -(-total // BATCH_SIZE), "batches"
    ):
        image, view = np.divmod(np.arange(start, min(start + BATCH_SIZE, total)), codes.num_views)
        index, view = (torch.from_numpy(a).to(codes.device) for a in (image, view))
        features = encoder.features(codes.pixels(index, view)).half().cpu().numpy()
        if not np.isfinite(features).all():
            raise UserError(
                f"{encoder.name} gives features beyond half precision (65,504): write foresight.encoder.cache: false"
            )
        rows[start : start + len(features)] = features
    out.flush()
