"""Images → features. One entry of EXTRACTORS each, registered with torch-fidelity under its own name and fed through it.

A feature space has its own name for each distance in it: "FID" and "KID" are those of the 2015 Inception at 2,048 dimensions, no other's.
torch_fidelity is imported by open_extractor alone. Letters: B images, n images in all, d dimensions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirai_bench.config.run_config import RunConfig
from mirai_bench.evaluate.digits_classifier import classifier_file, load_classifier
from mirai_bench.evaluate.metrics import Array, InceptionScore, Moments
from mirai_bench.evaluate.networks import (
    Dinov2,
    Inception2015,
    InceptionCompat,
    locate_2015,
    locate_compat,
    locate_dinov2,
)
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.hashing import file_sha256


@dataclass(frozen=True)
class Entry:
    network: Callable[[Path], nn.Module]
    """weight file → module: uint8 (B, 3, h, w) → {feature: (B, d)}"""
    locate: Callable[[RunConfig, Path | None], Path]
    """the weight file; raises UserError where it cannot be had. The path is the command line's --weights"""
    features: tuple[str, ...]
    """`pool` always; `spatial` for sFID; `logits` for the Inception Score, or for class accuracy where they are the data's own classes"""
    frechet: str
    kernel: str
    batch: int = 64
    """images a forward pass, always: sums inside a network may depend on it in their last bits, so nobody's choice of batch size reaches it"""
    kid: tuple[int, int] = (100, 1000)
    """subsets, images in each"""
    image_size: int | None = None
    """the only side in pixels that it takes"""
    labels: bool = False
    """the logits are those of the data's own classes"""


class Digits(nn.Module):
    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.classifier = load_classifier(weights)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features, logits = self.classifier(images)
        return {"pool": features, "logits": logits}


def _locate_digits(config: RunConfig, weights: Path | None) -> Path:
    if config.data.dataset != "digits":
        raise UserError(
            f"protocol.extractor is digits, but data.dataset is {config.data.dataset}: write extractor: inception, inception_2015 or dinov2"
        )
    return weights or classifier_file(config)


EXTRACTORS = {
    "digits": Entry(
        Digits,
        _locate_digits,
        ("pool", "logits"),
        "FD-digits",
        "KID-digits",
        250,
        (20, 500),
        image_size=8,
        labels=True,
    ),
    "inception": Entry(InceptionCompat, locate_compat, ("pool", "spatial", "logits"), "FID", "KID"),
    "inception_2015": Entry(Inception2015, locate_2015, ("pool", "spatial"), "FID", "KID"),
    "dinov2": Entry(Dinov2, locate_dinov2, ("pool",), "FD-DINOv2", "KID-DINOv2"),
}


def entry_of(name: str) -> Entry:
    if name not in EXTRACTORS:
        raise unknown("extractor", name, EXTRACTORS)
    return EXTRACTORS[name]


def _register(name: str, entry: Entry) -> None:
    """Makes `name` known to torch-fidelity, once a process (a second registration of a name raises)."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if name in FEATURE_EXTRACTORS_REGISTRY:
        return

    class Registered(FeatureExtractorBase):
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any
        ) -> None:
            super().__init__(name, features_list)
            self.network = entry.network(Path(feature_extractor_weights_path))

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features = self.network(images)
            return tuple(features[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return entry.features

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "pool"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    register_feature_extractor(name, Registered)


class Extractor:
    """A frozen network on a device. `sha256` is its weight file's."""

    def __init__(self, name: str, weights: Path, device: torch.device) -> None:
        from torch_fidelity.utils import create_feature_extractor

        self.name, self.entry, self.device = name, entry_of(name), device
        self.sha256 = file_sha256(weights)
        _register(f"mirai-{name}", self.entry)
        self.module = create_feature_extractor(
            f"mirai-{name}",
            list(self.entry.features),
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=str(weights),
        ).to(device)

    @property
    def identity(self) -> dict[str, str]:
        return {"name": self.name, "sha256": self.sha256}

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (B, h, w, 3) → {feature: (B, d)}. Raises UserError for images of a size that it does not take."""
        side = self.entry.image_size
        if side is not None and images.shape[1:3] != (side, side):
            raise UserError(
                f"extractor {self.name} takes images of {side}x{side} pixels, found {images.shape[1]}x{images.shape[2]}: choose another"
            )
        parts = []
        # TF32 would move features in their third digit, and autotuning would choose other kernels on another day
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            for start in range(0, len(images), self.entry.batch):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self.entry.batch])).to(
                    self.device
                )
                parts.append(
                    self.module.convert_features_tuple_to_dict(self.module(batch.permute(0, 3, 1, 2)))
                )
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in self.entry.features}


class Collected:
    """The features of n images that arrive in order, as the metrics need them: memory is `keep` rows of `pool`, whatever n.

    `keep` rows are evenly spaced, for the metrics that compare images with images (precision, recall, density, coverage, KID).
    """

    def __init__(self, n: int, entry: Entry, keep: int | None = None) -> None:
        self.n, self.entry, self.seen = n, entry, 0
        self.kept_rows = np.arange(keep) * n // keep if keep is not None and keep < n else np.arange(n)
        self.kept: Array | None = None  # (keep, d)
        self.moments: dict[str, Moments] = {}
        self.scores: InceptionScore | None = None
        self.correct = 0

    def add(self, features: dict[str, np.ndarray], labels: np.ndarray | None = None) -> None:
        """Of the next images; `labels` (B,) are their classes, where they have any."""
        pool = features["pool"]
        if self.kept is None:
            self.kept = np.empty((len(self.kept_rows), pool.shape[1]))
        first, last = np.searchsorted(self.kept_rows, [self.seen, self.seen + len(pool)])
        self.kept[first:last] = pool[self.kept_rows[first:last] - self.seen]
        for name in {"pool", "spatial"} & set(features):
            self.moments.setdefault(name, Moments(features[name].shape[1])).add(features[name])
        if "logits" in features:
            self._add_logits(features["logits"], labels)
        self.seen += len(pool)

    def _add_logits(self, logits: np.ndarray, labels: np.ndarray | None) -> None:
        if self.entry.labels:
            self.correct += 0 if labels is None else int((logits.argmax(1) == labels).sum())
            return
        self.scores = self.scores or InceptionScore(self.n, logits.shape[1])
        self.scores.add(logits)


def open_extractor(
    config: RunConfig, name: str, device: torch.device, weights: Path | None = None
) -> Extractor:
    """Raises UserError for an unknown name, and where the weights cannot be had."""
    return Extractor(name, entry_of(name).locate(config, weights), device)
