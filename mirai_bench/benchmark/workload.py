"""What is measured: shapes, arms, and our trainer on random codes. Letters: N images, T tokens, Z feature width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mirai_bench.config.load import build_run
from mirai_bench.config.run_config import MODEL_SIZES, RunConfig
from mirai_bench.data.codes import Batch, Codes
from mirai_bench.data.synthetic import CLASSES, random_codes
from mirai_bench.foresight.encoders import build as encoders
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.train.trainer import Trainer


@dataclass(frozen=True)
class Shape:
    """Model, token grid and batch. `heads` of width 64, as LlamaGen's sizes have."""

    depth: int
    width: int
    grid: int
    vocabulary: int
    batch: int

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)

    def __str__(self) -> str:
        return f"{self.depth} x {self.width}, {self.grid}x{self.grid}, {self.vocabulary:,} codes, batch {self.batch}"


SHAPES = {
    "small": Shape(6, 256, 8, 512, 16),
    "medium": Shape(12, 256, 16, 4096, 8),
    **{name: Shape(*MODEL_SIZES[name][:2], 16, 16384, 256) for name in ("B", "L", "XL")},
}


# Foresight fields. Mirai's are the official code's, so that both do the same work; `cached` features come from memory.
ARMS: dict[str, dict[str, Any]] = {
    "ntp": {"level": "none"},
    "mirai-e-k1": {"official": True, "k": 1, "warmup": 0.0},
    "mirai-e-k3": {"official": True, "k": 3, "warmup": 0.0},
    "mirai-e-k9": {"official": True, "k": 9, "warmup": 0.0},
    "mirai-i-online": {"official": True, "source": "encoder", "encoder": {"name": "dinov2_b"}},
    "mirai-i-cached": {"official": True, "source": "encoder", "encoder": {"name": "dinov2_b", "cache": True}},
    "mtp": {"level": "output", "layout": "grid_2d", "k": 3, "weight": 1.0},
}


def run_config(
    shape: Shape, arm: str, precision: str, device: torch.device, compiled: bool = False, threads: int = 2
) -> RunConfig:
    fields = {
        "data": {"dataset": "folder", "name": "random", "image_size": 16 * shape.grid, "classes": CLASSES},
        "tokenizer": {"name": "vq16", "downsample": 16, "vocabulary": shape.vocabulary},
        "model": {"depth": shape.depth, "width": shape.width, "heads": shape.heads},
        "foresight": ARMS[arm],
        "train": {"epochs": 1000, "batch_size": shape.batch, "precision": precision},
        "evaluation": {"at": [1000], "protocol": "paper"},
        "machine": {"device": device.type, "threads": threads, "compile": compiled},
    }
    return build_run(fields, "benchmark")


class StoredFeatures:
    """Mirai-I's teacher from memory: one feature (T, Z) an image of a batch, in half precision."""

    width = 768

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        cells = config.grid[0] * config.grid[1]
        self.features = torch.randn(config.train.batch_size, cells, self.width, device=device).half()

    def __call__(self, batch: Batch, codes: Codes) -> Tensor:
        return self.features[batch.index % len(self.features)].float()


@contextmanager
def untrained_encoders() -> Iterator[None]:
    """A ViT-B/14 with random weights in the place of DINOv2: as fast, and no file is needed."""

    def build(config: RunConfig, codes: Codes, device: torch.device) -> encoders.Encoder:
        if config.foresight.encoder.cache:
            return StoredFeatures(config, device)
        return PixelEncoder("dinov2_b", config.grid, device, pretrained=False)

    original = encoders.ENCODERS["dinov2_b"]
    encoders.ENCODERS["dinov2_b"] = build
    try:
        yield
    finally:
        encoders.ENCODERS["dinov2_b"] = original


class Ours:
    """Our trainer, one step a call, with the loss read on the host as a log line would."""

    def __init__(self, config: RunConfig) -> None:
        with untrained_encoders():
            self.trainer = Trainer(config, codes=random_codes(config, torch.device(config.machine.device)))
        self.steps = 0

    def __call__(self) -> float:
        values = self.trainer.step(self.steps)
        self.steps += 1
        return float(values["loss"])
