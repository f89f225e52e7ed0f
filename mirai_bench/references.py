"""Reference statistics: what samples are compared with. A data split, a file of statistics or of images, or a folder of images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .cache import cached
from .cli import progress
from .config import RunConfig
from .data.codes import images_of
from .data.datasets import has_heldout_images, open_dataset
from .errors import UserError
from .extractors import Collected, Extractor
from .hashing import digest
from .metrics import Array, Gaussian, square_root

SPLITS = ("train", "heldout")
FEATURES_KEPT = (
    10_000  # evenly spaced reference images for precision, recall, density, coverage and KID, as many as ADM's batch has
)
RECIPE = 1  # bumped when the statistics below change: cached ones are then made again


@dataclass(frozen=True)
class Reference:
    name: str
    sha256: str
    """of the file, or of the data set's images"""
    n: int | None
    """images behind the Gaussians; None where a file does not say"""
    pool: Gaussian
    spatial: Gaussian | None = None
    features: Array | None = None
    """(m, d), m ≤ FEATURES_KEPT"""

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "n": self.n}

    @cached_property
    def roots(self) -> dict[str, Array]:
        """Square roots of the covariances: half the work of a Fréchet distance, done once."""
        parts = {"pool": self.pool, "spatial": self.spatial}
        return {name: square_root(part.cov) for name, part in parts.items() if part is not None}


def _gaussian_arrays(collected: Collected) -> dict[str, np.ndarray]:
    names = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
    arrays: dict[str, np.ndarray] = {}
    for feature, moments in collected.moments.items():
        gaussian = moments.gaussian()
        arrays |= dict(zip(names[feature], (gaussian.mean, gaussian.cov), strict=True))
    return arrays


def write_statistics(folder: Path, batches: Iterable[np.ndarray], n: int, extractor: Extractor, manifest: dict[str, Any]) -> None:
    """n images, uint8 (B, h, w, 3) at a time → folder/reference.npz and its manifest.json."""
    collected = Collected(n, extractor.entry, FEATURES_KEPT)
    for batch in progress(batches, "reference features", unit="batches"):
        collected.add(extractor(batch))
    assert collected.seen == n, "as many images as announced"
    np.savez(folder / "reference.npz", **_gaussian_arrays(collected), features=collected.kept.astype(np.float32))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"n": n, "extractor": extractor.identity}, indent=1))


def _read(folder: Path) -> Reference:
    manifest = json.loads((folder / "manifest.json").read_text())
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        spatial = Gaussian(arrays["mu_s"], arrays["sigma_s"]) if "mu_s" in arrays else None
        pool, features = Gaussian(arrays["mu"], arrays["sigma"]), arrays["features"].astype(np.float64)
    return Reference(manifest["name"], manifest["sha256"], manifest["n"], pool, spatial, features)


def _of_split(config: RunConfig, split: str, extractor: Extractor) -> Reference:
    if split == "heldout" and not has_heldout_images(config):
        raise UserError("protocol.reference is heldout, but the data has no held-out split: write reference: train")
    dataset = open_dataset(config, split)
    manifest = {
        "name": f"{dataset.name}/{split}",
        "sha256": f"sha256:{dataset.sha256}",
        "image_size": config.data.image_size,
    }

    def build(folder: Path) -> None:
        batches = (images for images, _ in images_of(config, split))
        write_statistics(folder, batches, len(dataset), extractor, manifest)

    identity = digest([RECIPE, manifest, extractor.identity])
    return _read(cached(config.machine.runs / "cache" / f"reference-{identity}", build))


def open_reference(config: RunConfig, reference: str, extractor: Extractor) -> Reference:
    """`train` or `heldout` of the run's own data, or a path. Raises UserError for a file or folder of the wrong kind."""
    if reference in SPLITS:
        return _of_split(config, reference, extractor)
    raise UserError(f"protocol.reference is {reference!r}: write train or heldout")
