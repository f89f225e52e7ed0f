"""Evaluation of samples under a protocol: what they are compared with, in which feature space, and everything a reader needs to repeat it."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from .config import RunConfig
from .data.codes import has_heldout, open_codes
from .extractors import Collected, Extractor, open_extractor
from .metrics import density_coverage, frechet
from .model import ARModel
from .protocol import Protocol
from .references import Reference, open_reference
from .sample import image_grid, sample_images
from .tokenizer import Tokenizer, load_tokenizer

T = TypeVar("T")
UNIT = 500  # images that a process samples and extracts in one go: features are computed in the same groups whatever the process count
HELDOUT_BATCH = 256
NEIGHBOURS = 3  # of precision and recall
KID_SEED = 2020
DISTANCE_ROWS = 500  # of a block of the distance matrix of precision and recall


class Result(NamedTuple):
    metrics: dict[str, float]
    provenance: dict[str, Any]
    """protocol, protocol_digest, extractor, reference"""
    grid: np.ndarray
    """uint8 (h, w, 3) of the first samples, a class a column"""
    sample_seconds: float
    evaluate_seconds: float


class Samples(NamedTuple):
    images: np.ndarray  # uint8 (B, h, w, 3)
    labels: np.ndarray  # (B,)
    features: dict[str, np.ndarray]  # (B, d) each


def compare(samples: Collected, reference: Reference) -> dict[str, float]:
    """The metrics of samples against a reference; those that lack something (spatial features, reference images) are not there."""
    entry = samples.entry
    values = {entry.frechet: frechet(samples.moments["pool"].gaussian(), reference.pool, reference.roots["pool"])}
    if "spatial" in samples.moments and reference.spatial is not None:
        values["sFID"] = frechet(samples.moments["spatial"].gaussian(), reference.spatial, reference.roots["spatial"])
    if samples.scores is not None:
        values["IS"] = samples.scores.value()
    if reference.features is not None:
        values |= image_to_image(samples, reference)
    return values


def image_to_image(samples: Collected, reference: Reference) -> dict[str, float]:
    """KID, precision and recall by torch-fidelity, density and coverage: what needs the features themselves, not their moments."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = reference.features, samples.kept
    pair = torch.from_numpy(fake), torch.from_numpy(real)
    subsets, size = samples.entry.kid
    size = min(size, len(fake), len(real))
    kid = kid_features_to_metric(*pair, kid_subsets=subsets, kid_subset_size=size, rng_seed=KID_SEED, verbose=False)
    prc = prc_features_to_metric(
        *pair, prc_neighborhood=NEIGHBOURS, prc_batch_size=DISTANCE_ROWS, save_cpu_ram=True, verbose=False
    )
    density, coverage = density_coverage(fake, real)
    return {
        samples.entry.kernel: kid[KEY_METRIC_KID_MEAN],
        "precision": prc["precision"],
        "recall": prc["recall"],
        "density": density,
        "coverage": coverage,
    }


@torch.inference_mode()
def heldout_ntp(model: ARModel, config: RunConfig, device: torch.device) -> float:
    """Next-token loss on the held-out split, nats per token, given the true class, without dropout."""
    tokens, labels = _heldout(config, device)
    total = 0.0
    for part, part_labels in zip(tokens.split(HELDOUT_BATCH), labels.split(HELDOUT_BATCH), strict=True):
        logits = model(part, part_labels).logits.flatten(0, 1).float()
        total += F.cross_entropy(logits, part.flatten(), reduction="sum").item()
    return total / tokens.numel()


# What is the same for every evaluation of a run is opened once.
@lru_cache(maxsize=1)
def _heldout(config: RunConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return open_codes(config, "heldout", device).all()


@lru_cache(maxsize=1)
def _tokenizer(config: RunConfig, device: torch.device) -> Tokenizer:
    return load_tokenizer(config.tokenizer, device)


@lru_cache(maxsize=1)
def _measure(config: RunConfig, name: str, reference: str, device: torch.device) -> tuple[Extractor, Reference]:
    extractor = open_extractor(config, name, device)
    return extractor, open_reference(config, reference, extractor)


def provenance(protocol: Protocol, extractor: Extractor, reference: Reference) -> dict[str, Any]:
    return {
        "protocol": protocol.model_dump(mode="json"),
        "protocol_digest": protocol.digest(),
        "extractor": extractor.identity,
        "reference": reference.identity,
    }


def evaluate_model(model: ARModel, config: RunConfig, device: torch.device, *, batch_size: int = 250) -> Result:
    """Samples what the run's protocol says and measures it, held-out loss included where the data has a held-out split.

    `model` already holds the weights that the protocol names. `batch_size` is speed and memory only.
    """
    start, protocol = time.perf_counter(), config.evaluation.protocol
    extractor, reference = _measure(config, protocol.extractor, protocol.reference, device)
    tokenizer = _tokenizer(config, device)
    collected, first, sampling = Collected(protocol.num_samples, extractor.entry), [], 0.0
    for begin in range(0, protocol.num_samples, UNIT):
        began = time.perf_counter()
        indices = range(begin, min(begin + UNIT, protocol.num_samples))
        parts = list(sample_images(model, tokenizer, protocol, indices, batch_size=batch_size))
        images = torch.cat([images for images, _ in parts]).cpu().numpy()
        labels = torch.cat([labels for _, labels in parts]).cpu().numpy()
        sampling += time.perf_counter() - began
        collected.add(extractor(images), labels)
        first += [images] if begin == 0 else []
    metrics = compare(collected, reference)
    if extractor.entry.labels:
        metrics["class_accuracy"] = collected.correct / collected.n
    if has_heldout(config):
        metrics["heldout_ntp"] = heldout_ntp(model, config, device)
    grid = first_grid(first[0], config.data.classes)
    seconds = time.perf_counter() - start
    return Result(metrics, provenance(protocol, extractor, reference), grid, sampling, seconds - sampling)


def first_grid(images: np.ndarray, classes: int) -> np.ndarray:
    columns = min(10, classes)
    rows = 10 if images.shape[1] <= 64 else 4
    return image_grid(images[: rows * columns], columns)
