"""What regularizers cost, each by its name. Counted as in cost.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mirai_bench.config.regularizer import DispersiveConfig
from mirai_bench.config.run_config import RunConfig


class RegularizerCost(NamedTuple):
    """What a run's regularizer adds to next-token prediction."""

    flops: float = 0.0
    """Operations of one image in one training step, forward and backward."""
    parameters: int = 0
    """Parameters of its heads."""


def _dispersive(config: RunConfig, own: DispersiveConfig) -> RegularizerCost:
    # The inner products of each image with those of its group.
    group = own.group_of(config.train.batch_size)
    return RegularizerCost(3 * 2.0 * group * config.num_tokens * config.model.width)


COSTS: dict[str, Callable[[RunConfig, Any], RegularizerCost]] = {
    "none": lambda config, own: RegularizerCost(),
    "dispersive": _dispersive,
}


def regularizer_cost(config: RunConfig) -> RegularizerCost:
    """Returns what the run's regularizer adds to a step, and to the parameters."""
    return COSTS[config.regularizer.name](config, config.regularizer)
