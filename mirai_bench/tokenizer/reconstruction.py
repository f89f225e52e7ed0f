"""rFID: the Fréchet distance of reconstructed held-out images to the held-out images themselves.

The features are those of the extractor that the profile's evaluation protocol names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.image_sets import open_images
from mirai_bench.evaluate.extractors import open_extractor
from mirai_bench.evaluate.measure import StoredImages, measure
from mirai_bench.evaluate.references import open_reference


def reconstruction_distance(config: RunConfig, reconstructions: Path, device: torch.device) -> dict[str, Any]:
    """Measures an .npz file of `tokenizer measure --reconstructions`.

    Returns every metric of the evaluation, and the identities of the reference and the extractor.
    """
    images = open_images(reconstructions)
    extractor = open_extractor(config, config.evaluation.protocol.extractor, device)
    reference = open_reference(config, "heldout", extractor)
    measured = measure(StoredImages(images), extractor, reference, label="rFID")
    assert measured is not None, "rank 0 of one process gets the metrics"
    metrics = {name: float(f"{value:.5g}") for name, value in measured.metrics.items()}
    made_with = {"reference": reference.identity, "extractor": extractor.identity}
    return metrics | {"n": len(images)} | made_with
