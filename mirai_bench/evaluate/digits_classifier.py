"""The digits classifier behind FD-digits and class accuracy: a small convolutional network, trained once, the same on every machine.

It is trained in float64 and its weights are then rounded to a coarse grid: what processors and thread counts do to the last bits of a sum
is far below that grid, so the rounded weights, and with them the file's sha256, come out the same everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.utils.cli import say
from mirai_bench.utils.files import cached
from mirai_bench.utils.hashing import digest

WIDTH = 64  # of a feature


CHANNELS = 24


RECIPE = {
    "width": WIDTH,
    "channels": CHANNELS,
    "epochs": 30,
    "batch": 100,
    "lr": 5e-3,
    "decay": 0.05,
    "smoothing": 0.1,
    "grid": 10,
}


SEED = 0


class DigitsClassifier(nn.Module):
    """Images of 8x8 pixels → (features (B, 64), logits (B, 10)), in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Linear(
            9, CHANNELS
        )  # of 3x3 patches: as a matrix product, 5x as fast here as a float64 convolution
        self.hidden = nn.Linear(64 * CHANNELS, WIDTH)
        self.output = nn.Linear(WIDTH, 10)
        self.double()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, 8, 8)"""
        x = images.double().mean(1) / 127.5 - 1
        patches = F.pad(x, (1, 1, 1, 1), value=-1).unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)  # (B, 8, 8, 9)
        features = F.silu(self.hidden(F.silu(self.convolution(patches)).flatten(1)))
        return features, self.output(features)

    def init_weights(self, generator: torch.Generator) -> DigitsClassifier:
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5, generator=generator)
            else:
                nn.init.zeros_(parameter)
        return self


def _shifted(images: Tensor, shifts: np.ndarray) -> Tensor:
    """Each image (B, 3, 8, 8) moved by its (dy, dx) of -1, 0 or 1; black comes in."""
    padded = F.pad(images, (1, 1, 1, 1))
    first = torch.arange(len(images))[:, None, None]
    rows = torch.from_numpy(1 + shifts[:, :1] + np.arange(8))
    columns = torch.from_numpy(1 + shifts[:, 1:] + np.arange(8))
    return padded[first, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _images(config: RunConfig, split: str) -> tuple[Tensor, Tensor]:
    dataset = open_dataset(config, split)
    return torch.from_numpy(dataset.images).permute(0, 3, 1, 2), torch.from_numpy(dataset.labels)


def train_classifier(config: RunConfig) -> DigitsClassifier:
    """On the digits' training split; a function of nothing but the data and the recipe."""
    images, labels = _images(config, "train")
    rng = np.random.Generator(np.random.PCG64(SEED))
    model = DigitsClassifier().init_weights(torch.Generator().manual_seed(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["lr"], weight_decay=RECIPE["decay"])
    steps = RECIPE["epochs"] * (len(images) // RECIPE["batch"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["lr"], total_steps=steps)
    for _ in range(RECIPE["epochs"]):
        order = torch.from_numpy(rng.permutation(len(images)))
        for rows in order.split(RECIPE["batch"])[: steps // RECIPE["epochs"]]:
            batch = _shifted(images[rows], rng.integers(-1, 2, (len(rows), 2)))
            loss = F.cross_entropy(model(batch)[1], labels[rows], label_smoothing=RECIPE["smoothing"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for parameter in model.parameters():
        parameter.data = (parameter.data * 2 ** RECIPE["grid"]).round() / 2 ** RECIPE["grid"]
    return model


@torch.inference_mode()
def accuracy(model: DigitsClassifier, config: RunConfig, split: str) -> float:
    images, labels = _images(config, split)
    return (model(images)[1].argmax(1) == labels).double().mean().item()


def classifier_file(config: RunConfig) -> Path:
    """The trained weights, in the cache; trained now if they are not there (a few seconds)."""

    def build(folder: Path) -> None:
        say("training the digits classifier, once")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the network is too small to share, and a sum has one order
        try:
            model = train_classifier(config)
        finally:
            torch.set_num_threads(threads)
        save_file(
            {name: tensor.float() for name, tensor in model.state_dict().items()},
            folder / "model.safetensors",
        )
        record = {"recipe": RECIPE, "seed": SEED, "heldout_accuracy": accuracy(model, config, "heldout")}
        (folder / "record.json").write_text(json.dumps(record))

    identity = digest([RECIPE, SEED, open_dataset(config, "train").identity])
    return cached(config.machine.runs / "cache" / f"classifier-{identity}", build) / "model.safetensors"


def load_classifier(file: Path) -> DigitsClassifier:
    """Weights on a grid of 2^-10 are exact in the file's float32."""
    model = DigitsClassifier()
    model.load_state_dict(load_file(file))
    return model.eval().requires_grad_(False)
