"""Reference statistics: what samples are compared with. A data split, a folder or .npz of images, or a file of statistics.

Known files: our own (mu, sigma, mu_s, sigma_s, features and a manifest), ADM's (arr_0 images and mu, sigma, mu_s, sigma_s), EDM's (mu, sigma).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirai_bench.config.load import load_run
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import images_of
from mirai_bench.data.images.datasets import has_heldout_images, open_dataset
from mirai_bench.data.images.image_sets import npz_arrays, open_images, parts
from mirai_bench.evaluate.extractors import Collected, Extractor, open_extractor
from mirai_bench.evaluate.metrics import Array, Gaussian, square_root
from mirai_bench.utils.assets import assets_folder
from mirai_bench.utils.cli import progress, say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import cached
from mirai_bench.utils.hashing import digest, file_sha256

SPLITS = ("train", "heldout")


FEATURES_KEPT = 10_000  # evenly spaced reference images for precision, recall, density, coverage and KID, as many as ADM's batch has


INCEPTION_SHAPES = {"mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023)}


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


def write_reference(
    path: Path, batches: Iterable[np.ndarray], n: int, source: dict[str, Any], extractor: Extractor
) -> dict[str, Any]:
    """n images, uint8 (B, h, w, 3) at a time → an .npz of statistics at `path` whole, or not at all. Returns its manifest."""
    collected = Collected(n, extractor.entry, FEATURES_KEPT)
    for batch in progress(batches, "reference features", n, "images", weigh=len):
        collected.add(extractor(batch))
    assert collected.seen == n, "as many images as announced"
    names, arrays = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}, {}
    for feature, moments in collected.moments.items():
        arrays |= dict(zip(names[feature], moments.gaussian(), strict=True))
    manifest = source | {"n": n, "extractor": extractor.identity, "recipe": RECIPE}
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(
            file,
            **arrays,
            features=collected.kept.astype(np.float32),
            manifest=np.array(json.dumps(manifest)),
        )
    os.replace(temporary, path)
    return manifest


def _read_own(path: Path, extractor: Extractor) -> Reference:
    with np.load(path, allow_pickle=False) as arrays:
        manifest = json.loads(str(arrays["manifest"]))
        if manifest["extractor"] != extractor.identity:
            raise UserError(
                f"{path} was made with extractor {manifest['extractor']}, this evaluation uses {extractor.identity}: make it again with "
                "`python -m mirai_bench.evaluate reference`, or name the images themselves"
            )
        spatial = Gaussian(arrays["mu_s"], arrays["sigma_s"]) if "mu_s" in arrays else None
        pool, features = Gaussian(arrays["mu"], arrays["sigma"]), arrays["features"].astype(np.float64)
    return Reference(manifest["name"], manifest["sha256"], manifest["n"], pool, spatial, features)


def _cached(
    config: RunConfig, batches: Iterable[np.ndarray], n: int, source: dict[str, Any], extractor: Extractor
) -> Reference:
    def build(folder: Path) -> None:
        write_reference(folder / "reference.npz", batches, n, source, extractor)

    identity = digest([RECIPE, source, extractor.identity])
    return _read_own(
        cached(config.machine.runs / "cache" / f"reference-{identity}", build) / "reference.npz", extractor
    )


def split_images(config: RunConfig, split: str) -> tuple[Iterator[np.ndarray], int, dict[str, Any]]:
    """(batches, number, identity) of a data split's images, one view each."""
    if split == "heldout" and not has_heldout_images(config):
        raise UserError(
            "protocol.reference is heldout, but the data has no held-out split: write reference: train"
        )
    dataset = open_dataset(config, split)
    source = {
        "name": f"{dataset.name}/{split}",
        "sha256": f"sha256:{dataset.sha256}",
        "image_size": config.data.image_size,
    }
    return (images for images, _ in images_of(config, split)), len(dataset), source


def path_images(path: Path) -> tuple[Iterator[np.ndarray], int, dict[str, Any]]:
    """(batches, number, identity) of the images of a folder or .npz file."""
    images = open_images(path)
    return parts(images), len(images), {"name": path.name, "sha256": file_sha256(path)}


def find_reference(config: RunConfig, reference: str) -> Path:
    """The path as it is, else in the folder of assets. Raises UserError where there is none."""
    folder = assets_folder(config)
    candidates = [Path(reference)] + ([folder / reference] if folder is not None else [])
    for path in candidates:
        if path.exists():
            return path
    raise UserError(
        f"protocol.reference is {reference!r}, which is not there (looked at {', '.join(map(str, candidates))}): write train, heldout, or the "
        "path of an .npz or folder, or put it into machine.assets or $MIRAI_BENCH_ASSETS"
    )


def _of_path(config: RunConfig, path: Path, extractor: Extractor) -> Reference:
    if path.is_dir():
        return _cached(config, *path_images(path), extractor)
    if path.suffix != ".npz":
        raise UserError(
            f"{path} is not a reference: write an .npz file or a folder of images (pickles are not read)"
        )
    arrays = npz_arrays(path)
    if "manifest" in arrays:
        return _read_own(path, extractor)
    if {"mu", "sigma"} <= arrays.keys():
        return _of_statistics(config, path, extractor, with_images="arr_0" in arrays)
    if "arr_0" in arrays:
        return _cached(config, *path_images(path), extractor)
    raise UserError(
        f"{path} is not a reference: it holds {', '.join(arrays) or 'nothing'}; expected images (arr_0), statistics (mu, sigma; ADM's also "
        "mu_s, sigma_s), or a file of `python -m mirai_bench.evaluate reference`"
    )


def _of_statistics(config: RunConfig, path: Path, extractor: Extractor, with_images: bool) -> Reference:
    """ADM's and EDM's files. They do not say what made them: their shape must be the 2015 Inception's, and the extractor must be one."""
    if extractor.entry.frechet != "FID":
        raise UserError(
            f"{path} holds statistics of Inception features, but protocol.extractor is {extractor.name}: write inception or inception_2015"
        )
    arrays = npz_arrays(path)
    for name, expected in INCEPTION_SHAPES.items():
        shape, dtype = arrays.get(name, (expected, np.dtype(np.float64)))
        if shape != expected or dtype.kind != "f":
            raise UserError(
                f"{path} is not statistics of the 2015 Inception: {name} is {dtype} {shape}, expected floating-point numbers {expected}"
            )
    with np.load(path, allow_pickle=False) as file:
        pool = Gaussian(file["mu"].astype(np.float64), file["sigma"].astype(np.float64))
        spatial = (
            Gaussian(file["mu_s"].astype(np.float64), file["sigma_s"].astype(np.float64))
            if "mu_s" in arrays
            else None
        )
    features = _cached(config, *path_images(path), extractor).features if with_images else None
    if features is None:
        say(f"{path.name} holds statistics without images: no precision, recall, density, coverage or KID")
    return Reference(path.name, file_sha256(path), None, pool, spatial, features)


def open_reference(config: RunConfig, reference: str, extractor: Extractor) -> Reference:
    """`train` or `heldout` of the run's own data, or a path. Raises UserError for a file or folder of the wrong kind."""
    if reference in SPLITS:
        return _cached(config, *split_images(config, reference), extractor)
    return _of_path(config, find_reference(config, reference), extractor)


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.evaluate reference",
        description="Writes reference statistics, once for many evaluations. Prints their manifest.",
        epilog="example: python -m mirai_bench.evaluate reference heldout digits_heldout.npz --extractor digits",
    )
    parser.add_argument(
        "images",
        metavar="train|heldout|IMAGES",
        help="a split of --config's data, a folder, or an .npz with arr_0",
    )
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument("--extractor", required=True)
    parser.add_argument("--config", default="digits", metavar="PROFILE|FILE")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the extractor's weight file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    config = load_run(Path(args.config), args.set)
    extractor = open_extractor(config, args.extractor, torch.device(args.device), args.weights)
    images = split_images(config, args.images) if args.images in SPLITS else path_images(Path(args.images))
    batches, n, source = images
    print(json.dumps(write_reference(args.out, batches, n, source, extractor)))
    return 0
