"""What is measured: model shapes, arms of foresight, and our training step on random codes.

Letters: B batch, T tokens, Z feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mirai_bench.config.load import build_run
from mirai_bench.config.model_config import MODEL_SIZES
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Batch
from mirai_bench.data.synthetic import CLASSES, random_codes
from mirai_bench.foresight.level import InternalLevel
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils.device import Hardware
from mirai_bench.utils.errors import unknown

HEAD_WIDTH = 64  # of LlamaGen's sizes
DOWNSAMPLE = 16  # pixels per token along each side, of LlamaGen's tokenizer
DINOV2_WIDTH = 768  # of the features of DINOv2's ViT-B


@dataclass(frozen=True)
class Shape:
    """The model, the token grid and the batch of a measurement."""

    depth: int
    width: int
    grid: int
    """Number of tokens along each side of an image."""
    vocabulary: int
    batch: int


SHAPES = {"small": Shape(6, 256, 8, 512, 16), "medium": Shape(12, 256, 16, 4096, 8)}
for name in ("B", "L", "XL"):
    depth, width, _ = MODEL_SIZES[name]
    SHAPES[name] = Shape(depth, width, 16, 16384, 256)

# Foresight fields of each arm. Mirai's are those of the official code, so that both codes do the
# same work. The weights of the encoder are random: they are as fast as the published ones, and need
# no file.
ENCODER = {"name": "dinov2_b", "weights": "random"}
ARMS: dict[str, dict[str, Any]] = {
    "ntp": {"level": "none"},
    "mirai-e-k1": {"official": True, "k": 1, "warmup": 0.0},
    "mirai-e-k3": {"official": True, "k": 3, "warmup": 0.0},
    "mirai-e-k9": {"official": True, "k": 9, "warmup": 0.0},
    "mirai-i-online": {"official": True, "source": "encoder", "encoder": ENCODER},
    "mirai-i-cached": {"official": True, "source": "encoder", "encoder": ENCODER | {"cache": True}},
    "mtp": {"level": "output", "layout": "grid_2d", "k": 3, "weight": 1.0},
}


def find_shape(name: str) -> Shape:
    """Returns the shape of this name. Raises UserError if there is none."""
    if name not in SHAPES:
        raise unknown("size", name, SHAPES)
    return SHAPES[name]


def run_config(shape: Shape, arm: str, precision: str, micro_batches: int = 1) -> RunConfig:
    """Returns the config of a run of this shape. Raises UserError if there is no such arm."""
    if arm not in ARMS:
        raise unknown("arm", arm, ARMS)
    size = DOWNSAMPLE * shape.grid
    heads = max(1, shape.width // HEAD_WIDTH)
    fields = {
        "data": {"dataset": "folder", "name": "random", "image_size": size, "classes": CLASSES},
        "tokenizer": {"name": "vq16", "downsample": DOWNSAMPLE, "vocabulary": shape.vocabulary},
        "model": {"depth": shape.depth, "width": shape.width, "heads": heads},
        "foresight": ARMS[arm],
        "train": {"epochs": 1000, "batch_size": shape.batch, "precision": precision},
        "evaluation": {"at": [1000], "protocol": "paper"},
        "machine": {"micro_batches": micro_batches},
    }
    return build_run(fields, "benchmark")


class StoredFeatures:
    """A source that stands for cached features: random ones of a batch, in half precision."""

    one_off_seconds = 0.0

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.width = DINOV2_WIDTH
        shape = (config.train.batch_size, config.num_tokens, self.width)
        self.features = torch.randn(shape, device=device).half()  # (B, T, Z)

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the features (B, T, Z)."""
        return self.features[batch.index % len(self.features)].float()


class TrainStep:
    """Computes one step of our trainer per call, and reads its loss on the host as a log line does."""

    def __init__(self, config: RunConfig, hardware: Hardware) -> None:
        self.config = config
        self.steps = 0
        # A cache of features would first have to be computed and written.
        encoder = config.foresight.encoder.model_copy(update={"cache": False})
        foresight = config.foresight.model_copy(update={"encoder": encoder})
        without_cache = config.model_copy(update={"foresight": foresight})
        self.trainer = Trainer(without_cache, hardware, codes=random_codes(config, hardware.device))
        level = self.trainer.objective.foresight  # has its projectors already, of DINOv2's width
        if config.foresight.encoder.cache and isinstance(level, InternalLevel):
            level.source = StoredFeatures(config, hardware.device)

    def __call__(self) -> float:
        """Computes the next step and returns its loss."""
        values = self.trainer.step(self.steps)
        self.steps += 1
        return float(values["loss"])
