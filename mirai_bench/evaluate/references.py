"""Reference statistics: what samples are compared with.

A reference is a data split, a folder or .npz file of images, or a file of statistics. Three kinds
of such files are known: our own (mu, sigma, mu_s, sigma_s, features and a manifest), ADM's (arr_0
images and mu, sigma, mu_s, sigma_s), and EDM's (mu, sigma).
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.datasets import Split, has_heldout_images
from mirai_bench.data.images.image_sets import npz_arrays, opened_npz
from mirai_bench.evaluate.copies import CopyCheck
from mirai_bench.evaluate.extractors import Extractor, FeatureCollector, evenly_spaced
from mirai_bench.evaluate.metrics import Array, Gaussian, square_root
from mirai_bench.evaluate.pairs import Within
from mirai_bench.evaluate.reference_images import (
    FEATURES_KEPT,
    SPLITS,
    ReferenceImages,
    path_images,
    split_images,
)
from mirai_bench.utils.assets import assets_folder
from mirai_bench.utils.cli import progress
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import atomic, cached
from mirai_bench.utils.hashing import digest, file_sha256
from mirai_bench.utils.outside import SEE

log = logging.getLogger(__name__)

INCEPTION_SHAPES = {"mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023)}
# Names of the mean and the covariance of a feature in an .npz file.
ARRAYS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
RECIPE = 2  # raised when the statistics below change, so that cached ones are computed again


@dataclass(frozen=True)
class Reference:
    """The statistics of a reference, ready to be compared with."""

    name: str
    sha256: str
    """Hash of the file, or of the data set's images."""
    n: int | None
    """Number of images behind the Gaussians. None if a file does not say it."""
    pool: Gaussian
    spatial: Gaussian | None = None
    features: Array | None = None
    """Features (m, d) of m ≤ FEATURES_KEPT images."""
    copies: CopyCheck | None = None
    """Tells which samples are copies, if this is the training split of data with a held-out one."""
    reconstructions: Gaussian | None = None
    """Of `pool` of the images as a lossy tokenizer decodes them (reconstructions.py)."""

    side: int | None = None
    """Height of its images in pixels, if that is known."""

    def say_other_size(self, side: int) -> None:
        """Warns if samples of this height are compared with images of another one."""
        if self.side not in (None, side):
            log.warning(
                f"samples of {side} pixels are compared with {self.name} of {self.side} pixels: the distance "
                "is between two resolutions, too (protocol.resize brings samples to another)"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Returns what a record says about the reference."""
        return {"name": self.name, "sha256": self.sha256, "n": self.n}

    @cached_property
    def within(self) -> dict[int, Within]:
        """What `features` say of themselves, by the number of samples that they are compared with."""
        return {}

    @cached_property
    def roots(self) -> dict[str, Array]:
        """The square roots of the covariances.

        They are half the work of a Fréchet distance and are computed once.
        """
        roots = {"pool": square_root(self.pool.cov)}
        if self.spatial is not None:
            roots["spatial"] = square_root(self.spatial.cov)
        if self.reconstructions is not None:
            roots["reconstructions"] = square_root(self.reconstructions.cov)
        return roots


# ---- our own files of statistics


def write_reference(path: Path, images: ReferenceImages, extractor: Extractor) -> dict[str, Any]:
    """Writes the statistics of images to an .npz file and returns its manifest."""
    samples = FeatureCollector(images.n, extractor.entry, extractor.device, images.keep)
    side = 0
    for batch in progress(images.batches, images.label, images.n, "images", weigh=len):
        samples.add(extractor(batch))
        side = batch.shape[1]
    assert samples.seen == images.n, "as many images as announced"
    arrays: dict[str, Any] = {}
    for feature, moments in samples.moments.items():
        arrays |= dict(zip(ARRAYS[feature], moments.gaussian(), strict=True))
    manifest = images.identity | {
        "n": images.n,
        "extractor": extractor.identity,
        "recipe": RECIPE,
        "side": side,
    }
    text = np.array(json.dumps(manifest))
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, features=samples.kept.astype(np.float32), manifest=text)
    return manifest


def _read_gaussians(path: Path, arrays: Any) -> dict[str, Gaussian]:
    """Returns the Gaussian of each feature of an .npz file. Raises UserError if one is not finite."""
    found = {}
    for feature, names in ARRAYS.items():
        if names[0] in arrays:
            found[feature] = Gaussian(*(arrays[name].astype(np.float64) for name in names))
            if not all(np.isfinite(moment).all() for moment in found[feature]):
                raise UserError(f"{path}: {' or '.join(names)} is not finite: make the statistics again")
    return found


def _read_own(path: Path, extractor: Extractor) -> Reference:
    with opened_npz(path) as arrays:
        manifest = json.loads(str(arrays["manifest"]))
        if manifest["extractor"] != extractor.identity:
            raise UserError(
                f"{path} was made with extractor {manifest['extractor']}, this evaluation uses "
                f"{extractor.identity}: make it again with `python -m mirai_bench.evaluate "
                "reference`, or name the images themselves"
            )
        gaussians = _read_gaussians(path, arrays)
        features = arrays["features"]
    features = features[evenly_spaced(len(features), FEATURES_KEPT)].astype(np.float64)
    source = (manifest["name"], manifest["sha256"], manifest["n"])
    side = manifest.get("side")  # older files do not say it
    return Reference(*source, gaussians["pool"], gaussians.get("spatial"), features, side=side)


def _cached_file(runs: Path, images: ReferenceImages, extractor: Extractor) -> Path:
    """Returns the file of statistics of images in the cache in the folder of runs.

    Computes them first if they are missing.
    """

    def build(folder: Path) -> None:
        write_reference(folder / "reference.npz", images, extractor)

    identity = digest([RECIPE, images.identity, extractor.identity])
    folder = cached(runs / "cache" / f"reference-{identity}", build)
    return folder / "reference.npz"


def cached_reference(runs: Path, images: ReferenceImages, extractor: Extractor) -> Reference:
    """Returns the statistics of images, which the folder of runs keeps once they are computed."""
    return _read_own(_cached_file(runs, images, extractor), extractor)


def _open_split(config: RunConfig, split: Split, extractor: Extractor) -> Reference:
    """Returns a split as a reference, with the copy check if it is the training split."""
    runs = config.machine.runs
    images = split_images(config, split)
    file = _cached_file(runs, images, extractor)
    found = _read_own(file, extractor)
    if split != "train" or images.keep < images.n or not has_heldout_images(config):
        return found
    unseen = _cached_file(runs, split_images(config, "heldout"), extractor)
    copies = CopyCheck(npz_features(file), npz_features(unseen), extractor.device)
    return replace(found, copies=copies)


def npz_features(path: Path) -> NDArray[np.float32]:
    """Returns the features (m, d) that our own file of statistics keeps."""
    with opened_npz(path) as arrays:
        return arrays["features"]


# ---- any reference


def open_reference(config: RunConfig, reference: str, extractor: Extractor) -> Reference:
    """Returns the reference `train` or `heldout` of the run's own data, or the one at a path.

    Raises UserError for a file or folder of the wrong kind.
    """
    runs = config.machine.runs
    if reference in SPLITS:
        return _open_split(config, reference, extractor)
    path = find_reference(config.machine.assets, reference)
    if path.is_dir():
        return cached_reference(runs, path_images(path), extractor)
    if path.suffix != ".npz":
        raise UserError(
            f"{path} is not a reference: write an .npz file or a folder of images (pickles are not read)"
        )
    arrays = npz_arrays(path)
    if "manifest" in arrays:
        return _read_own(path, extractor)
    if {"mu", "sigma"} <= arrays.keys():
        return _read_statistics(runs, path, extractor)
    if "arr_0" in arrays:
        return cached_reference(runs, path_images(path), extractor)
    raise UserError(
        f"{path} is not a reference: it holds {', '.join(arrays) or 'nothing'}; expected images "
        "(arr_0), statistics (mu, sigma; ADM's also mu_s, sigma_s), or a file of `python -m "
        "mirai_bench.evaluate reference`"
    )


def find_reference(assets: Path | None, reference: str) -> Path:
    """Returns the path as it is, or else within the folder of assets.

    Raises UserError if neither exists.
    """
    folder = assets_folder(assets)
    candidates = [Path(reference)]
    if folder is not None:
        candidates.append(folder / reference)
    for path in candidates:
        if path.exists():
            return path
    raise UserError(
        f"protocol.reference is {reference!r}, which is not there (looked at "
        f"{', '.join(map(str, candidates))}) {SEE}: write train, heldout, or the path of an .npz or "
        "folder, or put it into machine.assets or $MIRAI_BENCH_ASSETS"
    )


def _read_statistics(runs: Path, path: Path, extractor: Extractor) -> Reference:
    """Reads ADM's and EDM's files.

    They do not say what made them. So their shapes must be the 2015 Inception's, and the extractor
    must be one.
    """
    if extractor.entry.frechet != "FID":
        raise UserError(
            f"{path} holds statistics of Inception features, but protocol.extractor is "
            f"{extractor.name}: write inception or inception_2015"
        )
    arrays = npz_arrays(path)
    for name, expected in INCEPTION_SHAPES.items():
        shape, dtype = arrays.get(name, (expected, np.dtype(np.float64)))
        if shape != expected or dtype.kind != "f":
            raise UserError(
                f"{path} is not statistics of the 2015 Inception: {name} is {dtype} {shape}, "
                f"expected floating-point numbers {expected}"
            )
    with opened_npz(path) as file:
        gaussians = _read_gaussians(path, file)
    # Without images there are no precision, recall, density, coverage and KID.
    features = None
    if "arr_0" in arrays:
        features = cached_reference(runs, path_images(path), extractor).features
    sha256 = file_sha256(path)
    return Reference(path.name, sha256, None, gaussians["pool"], gaussians.get("spatial"), features)
