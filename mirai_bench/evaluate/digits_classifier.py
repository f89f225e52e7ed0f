"""The digits classifier behind FD-digits and class accuracy.

It is a small convolutional network. Its weights ship with the package, and whoever trains it again
gets the same file: it is trained in float64 and its weights are then rounded to a coarse grid. What
processors and thread counts do to the last bits of a sum is far below that grid, so the rounded
weights, and with them the file's sha256, come out the same everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from mirai_bench.data.images.datasets import Dataset
from mirai_bench.evaluate.image_classifier import SHIPPED, weight_name
from mirai_bench.utils.tensors import load_into

DIGITS_WEIGHTS = SHIPPED / weight_name("digits")
SEED = 0  # of the initial weights, the order of the images and their shifts


class Recipe(NamedTuple):
    """How the classifier is built and trained.

    Another value makes another classifier, with another file.
    """

    width: int = 64
    """Width of a feature."""
    channels: int = 24
    epochs: int = 30
    batch: int = 100
    lr: float = 5e-3
    decay: float = 0.05
    """Weight decay."""
    smoothing: float = 0.1
    """Label smoothing."""
    grid: int = 10
    """Weights are rounded to multiples of 2^-grid."""


RECIPE = Recipe()


class DigitsClassifier(nn.Module):
    """Maps images of 8x8 pixels to features and logits, in float64."""

    def __init__(self) -> None:
        super().__init__()
        # The convolution of 3x3 patches is a matrix product: 5x as fast here as torch's in float64.
        self.convolution = nn.Linear(9, RECIPE.channels)
        self.hidden = nn.Linear(64 * RECIPE.channels, RECIPE.width)
        self.output = nn.Linear(RECIPE.width, 10)
        self.double()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images uint8 (B, 3, 8, 8) to pool (B, 64) and logits (B, 10)."""
        x = images.double().mean(1) / 127.5 - 1
        padded = F.pad(x, (1, 1, 1, 1), value=-1)
        patches = padded.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)  # (B, 8, 8, 9)
        features = F.silu(self.hidden(F.silu(self.convolution(patches)).flatten(1)))
        return {"pool": features, "logits": self.output(features)}

    def init_weights(self, generator: torch.Generator) -> None:
        """Initialises the matrices as He et al. do (arXiv 1502.01852), and the biases with zero."""
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                std = (2 / parameter[0].numel()) ** 0.5
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.zeros_(parameter)


def _shifted(images: Tensor, shifts: np.ndarray) -> Tensor:
    """Moves each image (B, 3, 8, 8) by its (dy, dx) of -1, 0 or 1.

    What enters at the edge is black.
    """
    padded = F.pad(images, (1, 1, 1, 1))
    first = torch.arange(len(images))[:, None, None]
    rows = torch.from_numpy(1 + shifts[:, :1] + np.arange(8))
    columns = torch.from_numpy(1 + shifts[:, 1:] + np.arange(8))
    return padded[first, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train_classifier(dataset: Dataset) -> DigitsClassifier:
    """Trains on the digits' training split, in one thread for a few seconds.

    The result depends on nothing but the data and the recipe.
    """
    assert dataset.images is not None, "digits are in memory"
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(dataset.labels)
    rng = np.random.Generator(np.random.PCG64(SEED))
    model = DigitsClassifier()
    model.init_weights(torch.Generator().manual_seed(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE.lr, weight_decay=RECIPE.decay)
    steps_per_epoch = len(images) // RECIPE.batch
    total_steps = RECIPE.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE.lr, total_steps=total_steps)
    for _ in range(RECIPE.epochs):
        order = torch.from_numpy(rng.permutation(len(images)))
        for rows in order.split(RECIPE.batch)[:steps_per_epoch]:
            batch = _shifted(images[rows], rng.integers(-1, 2, (len(rows), 2)))
            logits = model(batch)["logits"]
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=RECIPE.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for parameter in model.parameters():
        parameter.data = (parameter.data * 2**RECIPE.grid).round() / 2**RECIPE.grid
    return model


def weights_of(model: DigitsClassifier) -> bytes:
    """Returns a weight file. Weights on a grid of 2^-10 are exact in its float32."""
    return save({name: tensor.float() for name, tensor in model.state_dict().items()})


def load_classifier(file: Path) -> DigitsClassifier:
    """Loads the weights of a file, which are exact in its float32, for inference in float64."""
    model = DigitsClassifier()
    load_into(model, file)
    return model.eval().requires_grad_(False)
