"""Schedules (pure functions of progress), the parameter groups of AdamW, and the EMA."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.run_config import TrainConfig

M = TypeVar("M", bound=nn.Module)

# How a value changes from `start` to `end` while progress goes from 0 to 1.
SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda start, end, progress: start,
    "linear": lambda start, end, progress: start + (end - start) * progress,
    "cosine": lambda start, end, p: end + (start - end) * (1 + math.cos(math.pi * p)) / 2,
}


def foresight_weight(config: ForesightConfig, progress: float) -> float:
    """Returns λ at `progress`, the fraction of training that is done (0 to 1).

    λ is 0 during foresight's warm-up. Linear and cosine schedules run from its end to the end of
    training.
    """
    if config.level == "none" or progress < config.warmup:
        return 0.0
    if config.schedule in ("step", "two_steps"):  # one step is the paper's choice for Mirai-E (table 3)
        if progress < config.step_at:
            return config.weight
        between = config.schedule == "two_steps" and progress < config.second_step_at
        return config.middle_weight if between else config.final_weight
    after_warmup = (progress - config.warmup) / (1 - config.warmup)
    return SCHEDULES[config.schedule](config.weight, config.final_weight, after_warmup)


def foresight_can_be_off(config: ForesightConfig) -> bool:
    """Tells whether λ is 0 in some steps of a run with foresight.

    Such a step does not use the foresight heads.
    """
    # Linear and cosine schedules come to zero after the last step, not in it, and may start at zero.
    is_off = config.weight == 0 or config.active != [(0.0, 1.0)]
    return config.level != "none" and is_off


def learning_rate(config: TrainConfig, progress: float, step_size: float) -> float:
    """Returns the learning rate of the step that starts at `progress`.

    `step_size` is the progress of one step. It makes the first step of the warm-up not zero.
    """
    if progress < config.lr_warmup:
        return config.lr * min(1.0, (progress + step_size) / config.lr_warmup)
    after_warmup = (progress - config.lr_warmup) / (1 - config.lr_warmup)
    return SCHEDULES[config.lr_schedule](config.lr, 0.0, after_warmup)


def is_decayed(parameter: Tensor) -> bool:
    """Tells whether weight decay applies to a parameter.

    It applies to matrices, also of embeddings and projectors, and not to norms and biases.
    """
    # A projector's bias (K, 1, Z) is a vector for each head, not a matrix.
    return parameter.dim() >= 2 and parameter.shape[-2] != 1


def build_optimizer(config: TrainConfig, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices only."""
    trained = list(parameters)
    decayed = [parameter for parameter in trained if is_decayed(parameter)]
    others = [parameter for parameter in trained if not is_decayed(parameter)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # `fused`, because only this kernel can skip an update without waiting for the device.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def clone_as_ema(model: M) -> M:
    """Returns a frozen copy of the model."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Updates φ ← τφ + (1 - τ)θ with decay τ, in one multi-tensor call."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
