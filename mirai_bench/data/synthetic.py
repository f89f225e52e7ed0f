"""TODO: data.synthetic."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Codes
from mirai_bench.data.pixels import Pixels
from mirai_bench.data.shards import Joined

CLASSES = 1000


BATCHES = 4  # of codes: more only fill memory


PIXELS = 256  # a side, of Mirai-I's images


class RandomPixels(Pixels):
    """Images without files: (B, s, s, 3) uint8 of any index and view."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self.images = torch.randint(256, (batch, PIXELS, PIXELS, 3), dtype=torch.uint8, device=device)

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        return self.images[index % len(self.images)]


def random_codes(config: RunConfig, device: torch.device) -> Codes:
    rng, n = np.random.default_rng(0), BATCHES * config.train.batch_size
    codes = rng.integers(config.tokenizer.vocabulary, size=(n, 1, config.grid[0] * config.grid[1])).astype(
        np.uint16
    )
    labels = rng.integers(config.data.classes, size=n)
    return Codes(Joined([codes]), labels, RandomPixels(config.train.batch_size, device), {}, device)
