"""Foresight: level x layout x source, composed from the config. Only the trainer imports this; a trained model carries nothing of it."""

from __future__ import annotations

import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.foresight.level import LEVELS, InternalLevel, Level
from mirai_bench.foresight.source import SOURCES, Parts

__all__ = ["Level", "Parts", "build_foresight"]


def build_foresight(config: RunConfig, parts: Parts) -> Level | None:
    """The run's foresight heads on the device, seeded apart from the model (so that every arm starts from the same model); None for plain NTP."""
    level = LEVELS[config.foresight.level]
    if level is None:
        return None
    module = level(config, SOURCES[config.foresight.source](parts) if level is InternalLevel else None)
    module.init_weights(torch.Generator().manual_seed(config.seed + 2**31))
    return module.to(parts.device)
