"""The classifier of a user's own images, behind FD-own: trained on the spot, once, and kept in the cache.

It is the network of image_classifier.py on images of at most SIDE pixels, so that a CPU can train it in
minutes. Its weights are those of this machine: the sha256 of their file is part of what an evaluation says
about itself, and records with another one are not put into one table.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.config.data_config import DataConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import readable_rows
from mirai_bench.data.images.crops import read_bases
from mirai_bench.data.images.datasets import Dataset, Split, has_heldout_images, open_dataset
from mirai_bench.evaluate.classifier_training import Recipe, train_and_record
from mirai_bench.evaluate.image_classifier import load_image_classifier, weight_name
from mirai_bench.utils.device import resolve_device
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import cached
from mirai_bench.utils.hashing import digest

log = logging.getLogger(__name__)

SIDE = 32  # pixels; larger images are shrunk
MOST_IMAGES = 50_000  # that it is trained on, evenly spaced
PASSES = 12_000  # images that training sees, for its number of epochs, which is within these bounds
EPOCHS = (6, 60)
AT_A_TIME = 500  # images that are read
FIXED = ("digits", "cifar10", "fashion_mnist")  # data sets with classifiers of their own


class OwnClassifier(nn.Module):
    """The classifier with its shrinking of images before."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.classifier = load_image_classifier(file)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images uint8 (B, 3, h, w) to pool (B, 128) and logits (B, C)."""
        return self.classifier(shrunk(images))


def shrunk(images: Tensor) -> Tensor:
    """Returns images uint8 (B, 3, h, w) with sides of at most SIDE pixels, the same if they are small."""
    if max(images.shape[-2:]) <= SIDE:
        return images
    small = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def shrunk_dataset(config: RunConfig, split: Split) -> Dataset:
    """Returns the centre crops of a split in memory, as the classifier sees them."""
    dataset = open_dataset(config, split)
    rows = readable_rows(config, split, dataset)
    rows = rows[:: -(-len(rows) // MOST_IMAGES)]
    parts = []
    for start in range(0, len(rows), AT_A_TIME):
        crops = read_bases(dataset, rows[start : start + AT_A_TIME], config.data.image_size)
        small = shrunk(torch.from_numpy(crops).permute(0, 3, 1, 2))
        parts.append(small.permute(0, 2, 3, 1).numpy())
    return replace(dataset, images=np.concatenate(parts), labels=dataset.labels[rows], files=())


def recipe_for(data: DataConfig, images: int) -> Recipe:
    """Returns the recipe for so many images: as many steps as they need, and changes that fit their size."""
    side = min(SIDE, data.image_size)
    batch = min(128, max(16, images // 16))
    return Recipe(
        epochs=max(EPOCHS[0], min(EPOCHS[1], PASSES // images)),
        batch_size=batch,
        lr=0.4 * batch / 512,
        shift=side // 8,
        hole=side // 4,
        mirror=data.views != "center",
    )


def training_of(config: RunConfig) -> tuple[Dataset, Dataset | None, Recipe]:
    """Returns what the classifier of a data set is trained on and measured with, and how."""
    data = config.data
    if data.dataset in FIXED:
        recipe = Recipe(mirror=data.views != "center")
        return open_dataset(config, "train"), open_dataset(config, "heldout"), recipe
    train = shrunk_dataset(config, "train")
    heldout = shrunk_dataset(config, "heldout") if has_heldout_images(config) else None
    return train, heldout, recipe_for(data, len(train))


def locate_own(config: RunConfig, weights: Path | None) -> Path:
    """Returns the weight file: the given one, or that of this data's classifier, which may be trained now.

    Raises UserError if the data set has an extractor of its own, or fewer than two classes.
    """
    data = config.data
    if data.dataset in FIXED:
        name = data.dataset
        raise UserError(f"protocol.extractor is own, but {name} has a classifier: write extractor: {name}")
    if data.classes < 2:
        raise UserError(
            "protocol.extractor is own, a classifier of the data's classes, but there is one class only: "
            "write another extractor, or protocol: none for the held-out loss alone"
        )
    if weights is not None:
        return weights

    def build(folder: Path) -> None:
        log.info(f"training a classifier of {data.title}, once")
        device = resolve_device(config.machine.device)
        with torch.random.fork_rng():  # a run that is being trained keeps its random numbers
            train_and_record(*training_of(config), device, folder)

    dataset = open_dataset(config, "train")
    recipe = recipe_for(data, len(dataset))
    identity = digest([asdict(recipe), dataset.identity, data.image_size, SIDE])
    folder = config.machine.runs / "cache" / f"classifier-{identity}"
    return cached(folder, build) / weight_name(dataset.name)
