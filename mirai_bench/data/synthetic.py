"""Random codes and images, for measurements of speed and memory that need no data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Place
from mirai_bench.data.codes import Codes
from mirai_bench.data.pixels import Pixels
from mirai_bench.data.shards import ShardedArray
from mirai_bench.utils.device import send

CLASSES = 1000  # as many as ImageNet has
NUM_BATCHES = 4  # of different codes: the speed of a step does not depend on how many there are
IMAGE_SIZE = 256  # side of the images in pixels, as Mirai-I's teacher gets them


class RandomPixels(Pixels):
    """One batch of random images, which any index and view is taken from."""

    def __init__(self, num_images: int, device: torch.device) -> None:
        size = (num_images, IMAGE_SIZE, IMAGE_SIZE, 3)
        self.images = torch.randint(256, size, dtype=torch.uint8, device=device)

        self.device = device

    @property
    def from_files(self) -> bool:
        """Tells that they are in memory."""
        return False

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """Returns images uint8 (B, s, s, 3)."""
        return self.images[index % len(self.images)]

    def at(self, place: Place, read: list[np.ndarray] | None = None) -> Tensor:
        """Returns images uint8 (B, s, s, 3)."""
        return self(send(place.images, self.device), send(place.views, self.device))


def random_codes(config: RunConfig, device: torch.device) -> Codes:
    """Returns codes of the configuration's shape and vocabulary, the same at every call."""
    rng = np.random.default_rng(0)
    size = config.train.batch_size
    shape = (NUM_BATCHES * size, 1, config.num_tokens)
    codes = rng.integers(config.tokenizer.vocabulary, size=shape).astype(np.uint16)
    labels = rng.integers(config.data.classes, size=len(codes))
    return Codes(ShardedArray([codes]), labels, RandomPixels(size, device), {}, device)
