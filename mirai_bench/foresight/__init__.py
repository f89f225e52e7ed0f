"""Foresight: level x layout x source, composed from the configuration.

Only the trainer builds it. A trained model carries nothing of it: the heads are dropped after
training.
"""

from __future__ import annotations

import torch

from mirai_bench.foresight.context import SourceContext
from mirai_bench.foresight.level import LEVELS, Level

__all__ = ["Level", "SourceContext", "build_foresight"]

# The heads are seeded apart from the model, so that all arms of a seed start from the same model.
HEAD_SEED_OFFSET = 2**31


def build_foresight(context: SourceContext) -> Level | None:
    """Returns the run's foresight heads on its device, or None for plain next-token prediction."""
    build = LEVELS[context.config.foresight.level]
    if build is None:
        return None
    level = build(context)
    # On the CPU, before the heads move, so that a GPU starts from the same numbers.
    level.init_weights(torch.Generator().manual_seed(context.config.seed_of("init") + HEAD_SEED_OFFSET))
    return level.to(context.device)
