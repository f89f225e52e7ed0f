"""How good a tokenizer's reconstructions are, and how much of its codebook it uses. Letters: B batch, T tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mirai_bench.data.images.crops import read_bases
from mirai_bench.data.images.datasets import Dataset
from mirai_bench.data.tokenizers import Tokenizer

BATCH = 500  # images


def reconstruct(
    tokenizer: Tokenizer, dataset: Dataset, size: int, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(originals uint8 (B, h, w, 3), reconstructions, codes (B, T)) of the whole data set."""
    for start in range(0, len(dataset), BATCH):
        originals = read_bases(dataset, range(start, min(start + BATCH, len(dataset))), size)
        codes = tokenizer.encode(torch.from_numpy(originals).to(device))
        yield originals, tokenizer.decode(codes).cpu().numpy(), codes.cpu().numpy()


def measure(
    tokenizer: Tokenizer, dataset: Dataset, size: int, device: torch.device, keep: Path | None = None
) -> dict[str, float | int]:
    """PSNR (mean over the images, dB), usage (share of the codes that occur) and perplexity of the codes.

    `keep`: an .npz of the reconstructions (arr_0) and labels (arr_1), as `mirai_bench.evaluate` takes it for rFID.
    """
    counts, psnr, kept = np.zeros(tokenizer.vocabulary, np.int64), [], []
    for originals, images, codes in reconstruct(tokenizer, dataset, size, device):
        error = ((originals.astype(np.float32) - images) ** 2).mean((1, 2, 3))
        psnr.append(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
        counts += np.bincount(codes.ravel(), minlength=len(counts))
        if keep is not None:
            kept.append(images)
    if keep is not None:
        np.savez(keep, arr_0=np.concatenate(kept), arr_1=dataset.labels)
    p = counts[counts > 0] / counts.sum()
    return {
        "n": len(dataset),
        "psnr_db": round(float(np.concatenate(psnr).mean()), 3),
        "usage": round(float((counts > 0).mean()), 4),
        "perplexity": round(float(np.exp(-(p * np.log(p)).sum())), 1),
    }
