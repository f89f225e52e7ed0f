"""The forward and backward pass of a training step, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mirai_bench.utils.compiler import compiled


def compile_forward(objective: nn.Module, graphs: bool) -> Callable[..., Any]:
    """Returns the objective compiled with torch.compile: one graph of each shape and kind of step.

    With `graphs` its kernels are recorded in CUDA graphs, forward and backward.

    Compiled objectives of earlier trainers in this process are forgotten: they would be compiled
    again if they were called.
    """
    # Graphs belong to the code, not to the trainer: after eight trainers in one process torch would
    # let the ninth run eagerly without a word.
    torch.compiler.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    # A graph for each bucket of gradients hides the reduction behind the backward pass, and takes
    # 15 graphs at size B and 75 at XL. A reduction takes about a fiftieth of a step.
    torch._dynamo.config.optimize_ddp = False
    # With `fallback_random` a compiled run draws the same dropout masks as an eager one.
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": graphs}
    return compiled(objective, dynamic=False, options=options)
