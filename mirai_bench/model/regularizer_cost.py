"""What regularizers cost, each by its name. Counted as in cost.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from safetensors import safe_open

from mirai_bench.config.projector import ProjectorConfig
from mirai_bench.config.regularizer import DispersiveConfig, MtarConfig, NppConfig, RearConfig, StArConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.parts import block_flops, block_parameters, output_flops


class RegularizerCost(NamedTuple):
    """What a run's regularizer adds to next-token prediction."""

    flops: float = 0.0
    """Operations of one image in one training step, forward and backward."""
    parameters: int = 0
    """Parameters of its heads."""
    values: int = 0
    """Values per token that its heads keep for the backward pass."""
    blocks: int = 0
    """Number of blocks like the generator's among its heads."""
    outputs: int = 0
    """Number of heads over all codes."""
    early_share: float = 0.0
    """Share of training that the model reads shorter sequences in."""
    early_flops: float = 0.0
    """Operations of one image in one training step there, those of the generator included."""


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


def _mtar(config: RunConfig, own: MtarConfig) -> RegularizerCost:
    if own.weight == 0:
        return RegularizerCost()
    model = config.model
    seen = config.num_tokens - config.grid[1]  # the last row has no cell below
    products = own.blocks * block_flops(model, seen) + output_flops(config) * seen / config.num_tokens
    parameters = own.blocks * block_parameters(model) + model.width * config.tokenizer.vocabulary
    if own.blocks:
        parameters += model.width  # the norm
    return RegularizerCost(3 * products, parameters, blocks=own.blocks, outputs=1)


def _st_ar(config: RunConfig, own: StArConfig) -> RegularizerCost:
    if own.weight == 0:
        return RegularizerCost()
    width = config.model.width
    teacher = config.model.depth * block_flops(config.model, config.num_tokens)
    values = config.num_tokens // 4  # the mask, one byte for each token that a state may see
    group = own.group_of(config.train.batch_size)
    if group is None:
        return RegularizerCost(teacher, values=values)
    shapes = ProjectorConfig(layers=3, hidden=config.regularizer_hidden).shapes(1, width, width)
    products = sum(2.0 * own.positions * a * b for _, a, b in shapes)
    contrasts = (own.step > 0) + (own.view > 0)
    size = group // 2 if own.pairs_views else group
    # Of an image's inner products with its set, the teacher's side has no gradient.
    compared = 2 * 2.0 * contrasts * own.positions * size * width
    parameters = sum((a + 1) * b for _, a, b in shapes)
    return RegularizerCost(teacher + 3 * products + compared, parameters, values)


def _npp(config: RunConfig, own: NppConfig) -> RegularizerCost:
    if own.patch == 1:
        return RegularizerCost()
    cells = own.patch**2
    blocks = config.model.depth * block_flops(config.model, config.num_tokens // cells)
    early = 3 * (blocks + output_flops(config) / cells)
    return RegularizerCost(early_share=own.share, early_flops=early)


def code_width(config: RunConfig) -> int:
    """Returns the number of dimensions of the vectors of the tokenizer's codes."""
    tokenizer = config.tokenizer
    if tokenizer.name != "vq_small":
        return {"pixel": 2, "vq16": 8}.get(tokenizer.name, 16)  # that of a plug-in is not known
    if config.tokenizer_file is None:
        return 16  # what `tokenizer train` makes
    with safe_open(config.tokenizer_file, framework="np") as file:
        return int(json.loads(file.metadata()["sizes"])["width"])


COSTS: dict[str, Callable[[RunConfig, Any], RegularizerCost]] = {
    "none": lambda config, own: RegularizerCost(),
    "dispersive": _dispersive,
    "iar": lambda config, own: RegularizerCost(),  # from logits that are there anyway
    "rear": _rear,
    "mtar": _mtar,
    "st-ar": _st_ar,
    "npp": _npp,
}


def regularizer_cost(config: RunConfig) -> RegularizerCost:
    """Returns what the run's regularizer adds to a step, and to the parameters."""
    return COSTS[config.regularizer.name](config, config.regularizer)
