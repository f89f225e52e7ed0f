"""How well a tokenizer reconstructs images, how much of its codebook it uses, and its record.

The record is a JSON file next to the weights of a vq_small, with the same name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.crops import read_bases
from mirai_bench.data.images.datasets import Dataset
from mirai_bench.data.images.image_sets import NpzWriter
from mirai_bench.data.tokenizers import Tokenizer
from mirai_bench.data.tokenizers.vq_small import weight_file
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import read_json
from mirai_bench.utils.hashing import file_sha256

BATCH = 500  # images that are reconstructed at a time
ADVICE = "leave out --write-record"


def measure(
    tokenizer: Tokenizer, dataset: Dataset, size: int, device: torch.device, keep: Path | None = None
) -> dict[str, float | int]:
    """Measures a tokenizer on images of `size` pixels.

    Returns the PSNR (dB, mean over the images), the usage (share of the codes that occur) and the
    perplexity of the codes. `keep` is an .npz file that gets the reconstructions (arr_0) and labels
    (arr_1), as `mirai_bench.evaluate` takes it for rFID.
    """
    num_images = len(dataset)
    counts = np.zeros(tokenizer.vocabulary, np.int64)
    psnr = []
    writer = None if keep is None else NpzWriter(keep, num_images)
    # 1. Reconstruct the images.
    for start in range(0, num_images, BATCH):
        rows = range(start, min(start + BATCH, num_images))
        originals = read_bases(dataset, rows, size)
        codes = tokenizer.encode(torch.from_numpy(originals).to(device))
        images = tokenizer.decode(codes).cpu().numpy()
        error = ((originals.astype(np.float32) - images) ** 2).mean((1, 2, 3))
        # PSNR = 10 log10(255² / MSE) of each image, in dB. The floor keeps an exact reconstruction
        # finite: 78 dB.
        psnr.append(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
        counts += np.bincount(codes.cpu().numpy().ravel(), minlength=len(counts))
        if writer is not None:
            writer.add(images, dataset.labels[rows.start : rows.stop])
    if writer is not None:
        writer.close()
    # 2. The perplexity is the exponential of the entropy of the codes.
    used = counts[counts > 0] / counts.sum()
    return {
        "n": num_images,
        "psnr_db": round(float(np.concatenate(psnr).mean()), 3),
        "usage": round(float((counts > 0).mean()), 4),
        "perplexity": round(float(np.exp(-(used * np.log(used)).sum())), 1),
    }


def record_file(weights: Path) -> Path:
    """Returns the path of the record of a weight file."""
    return weights.with_suffix(".json")


def read_record(file: Path) -> dict[str, Any]:
    """Returns the content of a record. Raises UserError if it is damaged."""
    return read_json(file, "train the tokenizer again, or put the record back from a copy")


def find_record(config: RunConfig) -> Path:
    """Returns the path of the record of a configuration's weights.

    Raises UserError if there is none, or if it is that of other weights.
    """
    name = config.tokenizer.name
    if name != "vq_small":
        raise UserError(f"tokenizer.name is {name!r}, which has no record: {ADVICE}")
    weights = weight_file(config)
    file = record_file(weights)
    try:
        recorded = read_record(file)["weights"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not the record of a training ({error}): {ADVICE}") from None
    if recorded != file_sha256(weights):
        raise UserError(f"{file} is the record of other weights than {weights.name}: {ADVICE}")
    return file
