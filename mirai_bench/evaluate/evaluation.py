"""Evaluation of samples under a protocol: what they are compared with, in which feature space, and all that a reader needs to repeat it.

python -m mirai_bench.evaluate RUN --protocol paper
python -m mirai_bench.evaluate IMAGES --protocol cifar10_10k --config cifar10
python -m mirai_bench.evaluate compare A B
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from mirai_bench.config.protocol import Protocol
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import has_heldout, open_codes
from mirai_bench.data.images.grid import first_grid
from mirai_bench.data.tokenizers import Tokenizer, load_tokenizer
from mirai_bench.evaluate.extractors import Extractor, entry_of, open_extractor
from mirai_bench.evaluate.measure import Measured, Sampled, measure
from mirai_bench.evaluate.references import SPLITS, Reference, find_reference, open_reference, split_images
from mirai_bench.model.transformer import ARModel
from mirai_bench.utils.distributed import Ranks

HELDOUT_BATCH = 256


LOCAL_PATHS = {
    "machine": {"runs", "data", "codes", "assets"}
}  # of the machine, nothing to a reader of the record


class Result(NamedTuple):
    metrics: dict[str, float]
    provenance: dict[str, Any]
    """protocol, protocol_digest, extractor, reference"""
    grid: np.ndarray
    """uint8 (h, w, 3) of the first samples, a class a column"""
    sample_seconds: float
    evaluate_seconds: float


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
def _opened(config: RunConfig, device: torch.device, weights: Path | None) -> tuple[Extractor, Reference]:
    protocol = config.evaluation.protocol
    extractor = open_extractor(config, protocol.extractor, device, weights)
    return extractor, open_reference(config, protocol.reference, extractor)


def check_evaluation(config: RunConfig) -> None:
    """Raises UserError where a run of this config could not be evaluated: unknown extractor, weights or reference that are not there.

    Weights that can be had (the digits classifier, a download) are had now rather than after the first epochs.
    """
    protocol = config.evaluation.protocol
    entry_of(protocol.extractor).locate(config, None)
    if protocol.reference in SPLITS:
        split_images(config, protocol.reference)
    else:
        find_reference(config, protocol.reference)


def provenance_of(protocol: Protocol, extractor: Extractor, reference: Reference) -> dict[str, Any]:
    return {
        "protocol": protocol.model_dump(mode="json"),
        "protocol_digest": protocol.digest(),
        "extractor": extractor.identity,
        "reference": reference.identity,
    }


def evaluate_model(
    model: ARModel,
    config: RunConfig,
    device: torch.device,
    *,
    batch_size: int | None = None,
    ranks: Ranks | None = None,
) -> Result | None:
    """Samples what the run's protocol says and measures it, held-out loss included where the data has a held-out split.

    `model` already holds the weights that the protocol names. `batch_size` is speed and memory only. With `ranks` all processes of the
    group call this and share the work; all but rank 0 get None.
    """
    start = time.perf_counter()
    measured = measure_model(model, config, device, batch_size, ranks=ranks)
    if measured is None:
        return None
    grid = first_grid(measured.first, config.data.classes)
    seconds = time.perf_counter() - start - measured.sample_seconds
    provenance = provenance_of(config.evaluation.protocol, *_opened(config, device, None))
    return Result(measured.metrics, provenance, grid, measured.sample_seconds, seconds)


def measure_model(
    model: ARModel,
    config: RunConfig,
    device: torch.device,
    batch_size: int | None,
    weights: Path | None = None,
    **options: Any,
) -> Measured | None:
    """`options` are measure's. None at ranks other than 0."""
    protocol = config.evaluation.protocol
    source = Sampled(model, _tokenizer(config, device), protocol, batch_size)
    measured = measure(source, *_opened(config, device, weights), resize=protocol.resize, **options)
    if measured is not None and has_heldout(config):
        measured.metrics["heldout_ntp"] = heldout_ntp(model, config, device)
    return measured
