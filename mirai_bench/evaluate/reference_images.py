"""Images that become a reference: a split of the data, a folder, or an .npz file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import images_of, readable_rows
from mirai_bench.data.images.datasets import Split, has_heldout_images, open_dataset
from mirai_bench.data.images.image_sets import open_images, parts
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "heldout")
# Of a training split of at most so many images all features are kept, for the copy check.
TRAINING_KEPT = 100_000
# Number of evenly spaced reference images for precision, recall, density, coverage and KID; ADM's
# batch has as many.
FEATURES_KEPT = 10_000


class ReferenceImages(NamedTuple):
    """Images that have not been seen by an extractor yet."""

    batches: Iterable[np.ndarray]
    """Images uint8 (B, h, w, 3)."""
    n: int
    identity: dict[str, Any]
    """Their name, their sha256, and what else decides the statistics."""
    keep: int = FEATURES_KEPT
    """Number of images whose features are kept."""
    label: str = "reference features"
    """What their progress is shown under."""


def split_images(config: RunConfig, split: Split) -> ReferenceImages:
    """Returns the images of a data split, one view each.

    Raises UserError if the data has no such split.
    """
    if split == "heldout" and not has_heldout_images(config):
        raise UserError(
            "protocol.reference is heldout, but the data has no held-out split: write reference: train"
        )
    dataset = open_dataset(config, split)
    identity = {
        "name": f"{dataset.name}/{split}",
        "sha256": f"sha256:{dataset.sha256}",
        "image_size": config.data.image_size,
    }
    batches = (images for images, _ in images_of(config, split))
    n = len(readable_rows(config, split, dataset))
    if n < len(dataset):
        identity["left_out"] = len(dataset) - n
        log.warning(f"the reference {identity['name']} is of {n:,} images: {len(dataset) - n} cannot be read")
    is_whole = split == "train" and n <= TRAINING_KEPT
    return ReferenceImages(batches, n, identity, n if is_whole else FEATURES_KEPT)


def path_images(path: Path) -> ReferenceImages:
    """Returns the images of a folder or an .npz file."""
    images = open_images(path)
    identity = {"name": path.name, "sha256": file_sha256(path)}
    return ReferenceImages(parts(images), len(images), identity)
