"""Schedules (pure functions of progress), AdamW's parameter groups, EMA."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mirai_bench.config.foresight import Foresight
from mirai_bench.config.run_config import Train

# How a value goes from `start` to `end` while progress goes from 0 to 1; `step` changes at a point of its own.
SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda start, end, progress: start,
    "linear": lambda start, end, progress: start + (end - start) * progress,
    "cosine": lambda start, end, progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2,
}


def foresight_weight(config: Foresight, progress: float) -> float:
    """λ at `progress` (fraction of training done, 0 to 1): 0 during warm-up; linear and cosine run from its end to the end of training."""
    if config.level == "none" or progress < config.warmup:
        return 0.0
    if config.schedule == "step":
        return config.weight if progress < config.step_at else config.final_weight
    return SCHEDULES[config.schedule](
        config.weight, config.final_weight, (progress - config.warmup) / (1 - config.warmup)
    )


def foresight_rests(config: Foresight) -> bool:
    """Whether λ is 0 in some steps of a run with foresight: its heads are then parameters that such a step does not use."""
    ends_at_zero = config.schedule == "step" and config.final_weight == 0
    return config.level != "none" and (config.warmup > 0 or config.weight == 0 or ends_at_zero)


def learning_rate(config: Train, progress: float, step_size: float) -> float:
    """Learning rate of the step that starts at `progress`; step_size is the progress of one step, so that the warm-up's first is not zero."""
    if progress < config.lr_warmup:
        return config.lr * min(1.0, (progress + step_size) / config.lr_warmup)
    return SCHEDULES[config.lr_schedule](
        config.lr, 0.0, (progress - config.lr_warmup) / (1 - config.lr_warmup)
    )


def build_optimizer(config: Train, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """Weight decay on matrices (embeddings and projectors too), none on norms and biases. A projector bias (K, 1, Z) is a vector for each head."""
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in parameters:
        groups[parameter.dim() >= 2 and 1 not in parameter.shape[-2:-1]].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def clone_as_ema(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """φ ← τφ + (1 - τ)θ in one multi-tensor call."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
