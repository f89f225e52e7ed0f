"""Feature extractors: images to features. Each one is an entry of EXTRACTORS.

A feature space has its own name for each distance in it: "FID" and "KID" are those of the 2015
Inception at 2,048 dimensions, and of no other network. Letters: B images, n images in all, d
dimensions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirai_bench.config.run_config import RunConfig
from mirai_bench.evaluate import inception, networks
from mirai_bench.evaluate.digits_classifier import DIGITS_WEIGHTS, load_classifier
from mirai_bench.evaluate.image_classifier import load_image_classifier, locate_classifier
from mirai_bench.evaluate.metrics import Array, InceptionScore, Moments
from mirai_bench.evaluate.own_classifier import OwnClassifier, locate_own
from mirai_bench.utils import plugins
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.hashing import file_sha256


@dataclass(frozen=True)
class Entry:
    """A feature space: its network, its weights, and the names of its distances."""

    network: Callable[[Path], nn.Module]
    """Builds the network from its weight file. It maps uint8 (B, 3, h, w) to {feature: (B, d)}."""
    locate: Callable[[RunConfig, Path | None], Path]
    """Returns the weight file, which is the given path (--weights) if there is one. Raises \
UserError if it is missing and cannot be made or downloaded."""
    features: tuple[str, ...]
    """Names of the features: `pool` always, `spatial` for sFID, and `logits` for the Inception \
Score or, with `labels`, for class accuracy."""
    frechet: str
    """Name of the Fréchet distance of `pool`."""
    kernel: str
    """Name of the kernel distance of `pool`, which begins with KID."""
    batch: int = 64
    """Number of images per forward pass.

    It is fixed, because features can change in their last bits with it.
    """
    kid: tuple[int, int] = (100, 1000)
    """Number of subsets of the kernel distance, and of images in each."""
    image_size: int | None = None
    """Side of the images in pixels, if the network takes one size only."""
    labels: bool = False
    """Whether the logits are those of the data's own classes."""

    @property
    def sliced(self) -> str:
        """Returns the name of the sliced distance of `pool`."""
        return self.kernel.replace("KID", "MIND")


def _locate_digits(config: RunConfig, weights: Path | None) -> Path:
    if config.data.dataset != "digits":
        raise UserError(
            f"protocol.extractor is digits, but data.dataset is {config.data.dataset}: write "
            "extractor: own, inception, inception_2015, dinov2 or none"
        )
    return weights or DIGITS_WEIGHTS


def _among_assets(
    locate: Callable[[Path | None, Path | None], Path],
) -> Callable[[RunConfig, Path | None], Path]:
    """Returns `Entry.locate` for a network that needs only the folder of assets of a config."""
    return lambda config, weights: locate(config.machine.assets, weights)


def _classifier(
    load: Callable[[Path], nn.Module],
    locate: Callable[[RunConfig, Path | None], Path],
    short: str,
    **more: Any,
) -> Entry:
    """Returns the entry of a classifier of the data's own classes. Its distances are named FD-short etc."""
    return Entry(
        load,
        locate,
        features=("pool", "logits"),
        frechet=f"FD-{short}",
        kernel=f"KID-{short}",
        kid=(20, 500),
        labels=True,
        **more,
    )


def _image_classifier(dataset: str, short: str, side: int) -> Entry:
    """Returns the entry of the shipped classifier of a data set."""
    locate = partial(locate_classifier, dataset)
    return _classifier(load_image_classifier, locate, short, batch=250, image_size=side)


EXTRACTORS = {
    "digits": _classifier(load_classifier, _locate_digits, "digits", batch=250, image_size=8),
    "cifar10": _image_classifier("cifar10", "cifar10", 32),
    "fashion_mnist": _image_classifier("fashion_mnist", "fashion", 28),
    "own": _classifier(OwnClassifier, locate_own, "own"),
    "inception": Entry(
        inception.load_compat,
        _among_assets(networks.locate_compat),
        features=("pool", "spatial", "logits"),
        frechet="FID",
        kernel="KID",
    ),
    "inception_2015": Entry(
        inception.load_2015,
        _among_assets(networks.locate_2015),
        features=("pool", "spatial"),
        frechet="FID",
        kernel="KID",
    ),
    "dinov2": Entry(
        networks.Dinov2,
        _among_assets(networks.locate_dinov2),
        features=("pool",),
        frechet="FD-DINOv2",
        kernel="KID-DINOv2",
    ),
}


def entry_of(name: str) -> Entry:
    """Returns the entry of an extractor. Raises UserError if the name is unknown."""
    if name not in EXTRACTORS:
        raise unknown("extractor", name, EXTRACTORS)
    return EXTRACTORS[name]


class Extractor:
    """A frozen network on a device."""

    def __init__(self, name: str, weights: Path, device: torch.device) -> None:
        self.name = name
        self.entry = entry_of(name)
        self.device = device
        self.identity: dict[str, Any] = {"name": name, "sha256": file_sha256(weights)}
        code = plugins.identity_of([("extractor", name)])
        if code:
            self.identity["plugins"] = code
        self.network = self.entry.network(weights).requires_grad_(False).eval().to(device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Maps images uint8 (B, h, w, 3) to {feature: (B, d)}.

        Raises UserError for images of a size that the network does not take.
        """
        side = self.entry.image_size
        height, width = images.shape[1:3]
        if side is not None and (height, width) != (side, side):
            raise UserError(
                f"extractor {self.name} takes images of {side}x{side} pixels, found "
                f"{height}x{width}: choose another"
            )
        parts = []
        # TF32 would move features in their third digit, and autotuning could choose other kernels
        # on another day. Whoever calls an extractor from Python may have switched them on.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            for start in range(0, len(images), self.entry.batch):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self.entry.batch]))
                parts.append(self.network(batch.to(self.device).permute(0, 3, 1, 2)))
        features = {}
        for name in self.entry.features:
            features[name] = torch.cat([part[name] for part in parts]).cpu().numpy()
        return features


def open_extractor(
    config: RunConfig, name: str, device: torch.device, weights: Path | None = None
) -> Extractor:
    """Returns an extractor.

    Raises UserError if its name is unknown, or its weights cannot be found or made.
    """
    return Extractor(name, entry_of(name).locate(config, weights), device)


def evenly_spaced(n: int, keep: int) -> np.ndarray:
    """Returns the numbers of at most `keep` of n rows, evenly spaced."""
    return np.arange(n) if keep >= n else np.arange(keep) * n // keep


class FeatureCollector:
    """Collects the features of n images, which arrive in order, in the form that the metrics need.

    Memory is `keep` rows of `pool`, evenly spaced, whatever n. They are for the metrics that
    compare images with images: precision, recall, density, coverage, KID, and the copy check.
    """

    def __init__(self, n: int, entry: Entry, device: torch.device, keep: int | None = None) -> None:
        """Covariances are computed on `device`, and kept in this machine's memory."""
        self.n = n
        self.entry = entry
        self.device = device
        self.seen = 0
        self.kept_rows = evenly_spaced(n, n if keep is None else keep)
        self.moments: dict[str, Moments] = {}
        self.scores: InceptionScore | None = None
        self.labelled = 0  # images whose class is known
        self.correct = 0  # images whose logits say their class
        self._kept: Array | None = None  # (keep, d), once the first features have said d

    @property
    def kept(self) -> Array:
        """Returns the kept rows of `pool`, (keep, d)."""
        assert self._kept is not None, "images have been added"
        return self._kept

    def add(self, features: dict[str, np.ndarray], labels: np.ndarray | None = None) -> None:
        """Adds the features of the next images.

        `labels` (B,) are their classes, if they have any.
        """
        pool = features["pool"]
        if self._kept is None:
            self._kept = np.empty((len(self.kept_rows), pool.shape[1]))
        first, last = np.searchsorted(self.kept_rows, [self.seen, self.seen + len(pool)])
        self._kept[first:last] = pool[self.kept_rows[first:last] - self.seen]
        for name in ("pool", "spatial"):
            if name in features:
                moments = self.moments.setdefault(name, Moments(features[name].shape[1], self._gram))
                moments.add(features[name])
        if "logits" in features:
            self._add_logits(features["logits"], labels)
        self.seen += len(pool)

    def _gram(self, x: Array) -> Array:
        if self.device.type == "cpu":
            return x.T @ x
        there = torch.from_numpy(x).to(self.device)
        return (there.T @ there).cpu().numpy()

    def _add_logits(self, logits: np.ndarray, labels: np.ndarray | None) -> None:
        if not self.entry.labels:
            self.scores = self.scores or InceptionScore(self.n, logits.shape[1])
            self.scores.add(logits)
        elif labels is not None:
            self.labelled += len(labels)
            self.correct += int((logits.argmax(1) == labels).sum())
