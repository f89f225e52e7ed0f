"""Training of an image classifier: its recipe, its weight file and its record.

Everything random is drawn from one seed. The images stay on the device as bytes and are augmented
there. Letters: N images of the data set; B batch; h, w pixels.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.data.images.datasets import Dataset
from mirai_bench.evaluate.image_classifier import ImageClassifier, load_image_classifier, weight_name
from mirai_bench.tracking import provenance
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import device_name
from mirai_bench.utils.files import write_json
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.tensors import write_safetensors

log = logging.getLogger(__name__)

TEST_BATCH = 250


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: SGD with Nesterov momentum under a one-cycle learning rate."""

    epochs: int = 60
    batch_size: int = 512
    lr: float = 0.4
    """Peak learning rate. It rises along a cosine over the first 30 % and falls along another."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.0
    """Label smoothing. It draws the features of a class together (arXiv 1906.02629), which a distance \
of distributions is to see."""
    shift: int = 4
    """Images are moved by up to so many pixels each way. What enters is mirrored at the edge."""
    hole: int = 8
    """Side in pixels of the square of each image that is hidden (DeVries and Taylor, arXiv 1708.04552)."""
    mirror: bool = True
    """Whether half of the images are mirrored."""
    seed: int = 0


class Batches:
    """The training images on the device, in a new order and with new changes each epoch."""

    def __init__(self, dataset: Dataset, recipe: Recipe, device: torch.device) -> None:
        assert dataset.images is not None, "the caller has made sure of it"
        self.recipe = recipe
        self.device = device
        self.size = dataset.images.shape[1:3]  # (h, w)
        pad = (recipe.shift, recipe.shift)
        padded = np.pad(dataset.images, ((0, 0), pad, pad, (0, 0)), mode="reflect")
        self.padded = torch.from_numpy(padded).to(device)  # uint8 (N, h + 2 shift, w + 2 shift, 3)
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.per_epoch = math.ceil(len(dataset) / recipe.batch_size)

    def epoch(self) -> list[tuple[Tensor, ...]]:
        """Returns of each batch the rows, and the shifts, mirrorings and holes of its images."""
        n = len(self.labels)
        height, width = self.size
        draw = self.generator
        order = torch.randperm(n, generator=draw)
        shifts = torch.randint(2 * self.recipe.shift + 1, (n, 2), generator=draw)
        mirrored = (torch.rand(n, generator=draw) < 0.5) & self.recipe.mirror
        tops = torch.randint(height, (n, 1), generator=draw)
        lefts = torch.randint(width, (n, 1), generator=draw)
        holes = torch.cat([tops, lefts], 1) - self.recipe.hole // 2
        columns = (order, shifts, mirrored, holes)
        parts = [column.to(self.device).split(self.recipe.batch_size) for column in columns]
        return list(zip(*parts, strict=True))

    def images(self, rows: Tensor, shifts: Tensor, mirrored: Tensor, holes: Tensor) -> Tensor:
        """Returns changed images, float (B, 3, h, w) of levels 0…255."""
        height, width = self.size
        y = torch.arange(height, device=self.device).expand(len(rows), height)
        x = torch.arange(width, device=self.device).expand(len(rows), width)
        from_x = torch.where(mirrored[:, None], width - 1 - x, x) + shifts[:, 1:]
        from_y = y + shifts[:, :1]
        images = self.padded[rows[:, None, None], from_y[:, :, None], from_x[:, None, :]]
        top = holes[:, :1]
        left = holes[:, 1:]
        side = self.recipe.hole
        hidden_y = (y >= top) & (y < top + side)
        hidden_x = (x >= left) & (x < left + side)
        hidden = hidden_y[:, :, None, None] & hidden_x[:, None, :, None]  # (B, h, w, 1)
        return images.float().masked_fill(hidden, 127.5).permute(0, 3, 1, 2)


def train(dataset: Dataset, recipe: Recipe, device: torch.device) -> ImageClassifier:
    """Trains a classifier on a data set in memory. Products are in bf16 on a GPU, else in fp32."""
    torch.manual_seed(recipe.seed)  # of the initial weights
    model = ImageClassifier(len(dataset.class_names)).to(device)
    model.to(memory_format=torch.channels_last)
    batches = Batches(dataset, recipe, device)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    total = recipe.epochs * batches.per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total, cycle_momentum=False)
    todo: list[tuple[Tensor, ...]] = []  # batches of this epoch
    losses: list[Tensor] = []  # of this epoch; reading one would make the host wait
    for step in progress(range(total), "classifier", total, "steps"):
        if step % batches.per_epoch == 0:
            todo = batches.epoch()
            losses = []
        batch = todo[step % batches.per_epoch]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(batches.images(*batch))["logits"]
        labels = batches.labels[batch[0]]
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if (step + 1) % batches.per_epoch == 0:
            mean = torch.stack(losses).mean().item()
            log.info(f"epoch {(step + 1) // batches.per_epoch}/{recipe.epochs}: training loss {mean:.4f}")
    return model


def save_classifier(model: ImageClassifier, dataset: Dataset, file: Path) -> None:
    """Writes the weights in fp16, and in the file's metadata which data they were trained on."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        kept = tensor.half() if tensor.is_floating_point() else tensor  # a count of batches is no float
        tensors[name] = kept.contiguous().cpu()
    about = {"dataset": dataset.name, "sha256": dataset.sha256}
    write_safetensors(file, tensors, {"about": json.dumps(about)})


@torch.inference_mode()
def accuracy(model: ImageClassifier, dataset: Dataset, device: torch.device) -> float:
    """Returns the share of the images that the classifier names rightly."""
    assert dataset.images is not None, "the caller has made sure of it"
    correct = 0
    for start in range(0, len(dataset), TEST_BATCH):
        rows = slice(start, start + TEST_BATCH)
        images = torch.from_numpy(dataset.images[rows]).to(device).permute(0, 3, 1, 2)
        found = model(images)["logits"].argmax(1).cpu().numpy()
        correct += int((found == dataset.labels[rows]).sum())
    return correct / len(dataset)


def train_and_record(
    dataset: Dataset, heldout: Dataset | None, recipe: Recipe, device: torch.device, folder: Path
) -> tuple[Path, dict[str, Any]]:
    """Trains the classifier of a data set in memory, and measures it as it is stored.

    Returns the weight file and its record, which is written next to it.
    """
    start = time.monotonic()
    # cuDNN measures which of its kernels are the fastest.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        model = train(dataset, recipe, device)
    seconds = time.monotonic() - start
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / weight_name(dataset.name)
    save_classifier(model, dataset, file)
    measured: dict[str, Any] = {"n": 0 if heldout is None else len(heldout)}
    if heldout is not None:
        measured["accuracy"] = accuracy(load_image_classifier(file).to(device), heldout, device)
    record = {
        "weights": {"file": file.name, "sha256": file_sha256(file), "stored_as": "fp16, used as fp32"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "heldout": measured,
        "training": asdict(recipe) | {"seconds": round(seconds)},
        "precision": "bf16" if device.type == "cuda" else "fp32",
        "data": dataset.identity,
        "device": device_name(device),
        "versions": provenance.versions(),
        "git": provenance.git_state(),
    }
    write_json(file.with_suffix(".json"), record)
    return file, record
