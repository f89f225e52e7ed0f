"""What regularizers cost, each by its name. Counted as in cost.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from safetensors import safe_open

from mirai_bench.config.foresight import ProjectorConfig
from mirai_bench.config.regularizer import DispersiveConfig, RearConfig
from mirai_bench.config.run_config import RunConfig


class RegularizerCost(NamedTuple):
    """What a run's regularizer adds to next-token prediction."""

    flops: float = 0.0
    """Operations of one image in one training step, forward and backward."""
    parameters: int = 0
    """Parameters of its heads."""
    values: int = 0
    """Values per token that its heads keep for the backward pass."""


def _dispersive(config: RunConfig, own: DispersiveConfig) -> RegularizerCost:
    # The inner products of each image with those of its group.
    group = own.group_of(config.train.batch_size)
    return RegularizerCost(3 * 2.0 * group * config.num_tokens * config.model.width)


def _rear(config: RunConfig, own: RearConfig) -> RegularizerCost:
    if own.weight == 0:
        return RegularizerCost()
    hidden = config.regularizer_hidden
    target = code_width(config)
    shapes = ProjectorConfig(layers=2, hidden=hidden).shapes(2, config.model.width, target)
    products = sum(2.0 * config.num_tokens * copies * a * b for copies, a, b in shapes)
    parameters = sum(copies * (a + 1) * b for copies, a, b in shapes)
    return RegularizerCost(3 * products, parameters, 2 * (2 * hidden + 3 * target))


def code_width(config: RunConfig) -> int:
    """Returns the number of dimensions of the vectors of the tokenizer's codes."""
    tokenizer = config.tokenizer
    if tokenizer.name != "vq_small":
        return {"pixel": 2, "vq16": 8}[tokenizer.name]
    if config.tokenizer_file is None:
        return 16  # what `tokenizer train` makes
    with safe_open(config.tokenizer_file, framework="np") as file:
        return int(json.loads(file.metadata()["sizes"])["width"])


COSTS: dict[str, Callable[[RunConfig, Any], RegularizerCost]] = {
    "none": lambda config, own: RegularizerCost(),
    "dispersive": _dispersive,
    "iar": lambda config, own: RegularizerCost(),  # from logits that are there anyway
    "rear": _rear,
}


def regularizer_cost(config: RunConfig) -> RegularizerCost:
    """Returns what the run's regularizer adds to a step, and to the parameters."""
    return COSTS[config.regularizer.name](config, config.regularizer)
