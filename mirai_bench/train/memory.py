"""Checks, before training starts, that a run fits in memory, so that it is not killed hours later.

It also chooses the number of micro-batches after an out-of-memory error.
"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

import torch

from mirai_bench.config.model_config import ffn_width
from mirai_bench.config.projector import CAUSAL_CELLS, MLP_RATIO
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cost import num_parameters, teacher_parameters
from mirai_bench.model.kernels import chunk_rows
from mirai_bench.model.regularizer_cost import regularizer_cost
from mirai_bench.utils.device import Hardware, in_bytes, machine_bytes
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)

FLOAT32 = 4  # bytes

# ---- what a run takes


class DeviceBytes(NamedTuple):
    """The memory of one process."""

    fixed: int
    """Weights, gradients, two moments, EMA and a frozen teacher in float32. Under autocast also the
    half-precision copies of the weights."""
    activations: int
    """Activations of one micro-batch that are kept for the backward pass."""


def device_bytes(config: RunConfig, hardware: Hardware, world: int | None = None) -> DeviceBytes:
    """Estimates the memory of one of `world` processes, by default the workers of a trial.

    It is that of an eager step. The T x T scores of attention are not counted, because the kernels
    of a GPU never keep them. A teacher whose size is not known is not counted either.
    """
    model = config.model
    generator, heads = num_parameters(config)
    trained = generator + heads
    teacher = teacher_parameters(config) or 0
    num_bytes = 2 if hardware.half else FLOAT32  # of an activation
    # 1. Per parameter: weight, gradient and two moments of what is trained, EMA and teacher.
    fixed = FLOAT32 * (4 * trained + generator + teacher)
    if hardware.half:
        fixed += num_bytes * trained
    # 2. Per token: the blocks, and the projectors of foresight. The losses are chunked.
    processes = world or config.machine.workers
    rows = config.num_tokens * config.train.batch_size // (processes * config.machine.micro_batches)
    extra = regularizer_cost(config)
    of_blocks = (model.depth + extra.blocks) * _block_bytes(model.width, num_bytes)
    per_token = of_blocks + _projector_bytes(config, num_bytes) + num_bytes * extra.values
    kept, transient = logit_bytes(config, rows, num_bytes, hardware.kind)
    return DeviceBytes(fixed, rows * per_token + kept + transient)


def _block_bytes(width: int, num_bytes: int) -> int:
    """Returns the bytes per token that a block keeps for the backward pass."""
    # Inputs of the seven matrix products, queries, keys and values, and the factors of SwiGLU.
    products = num_bytes * (6 * width + 4 * ffn_width(width))
    # The residual stream before and after both norms.
    residual_stream = FLOAT32 * 4 * width
    masks = 2 * width  # of both dropouts, one byte per element
    return products + residual_stream + masks


def _projector_bytes(config: RunConfig, num_bytes: int) -> int:
    """Returns the bytes per token that level `internal` keeps for the backward pass."""
    foresight = config.foresight
    if not foresight.internal:
        return 0
    projector = foresight.projector
    width = config.model.width
    if projector.kind == "conv":  # the window of each state, which all heads share
        hidden = num_bytes * CAUSAL_CELLS * width
    elif projector.kind == "transformer":
        # Inputs of the five products, queries, keys and values, and the input of SiLU; the residual stream
        # after attention.
        of_head = num_bytes * (7 + 2 * MLP_RATIO) * width + FLOAT32 * width
        hidden = foresight.num_heads * of_head
    else:  # input and output of each SiLU
        trunks = 1 if projector.shared_trunk else foresight.num_heads
        hidden = trunks * (projector.layers - 1) * 2 * num_bytes * projector.hidden
    # What each head projects, and the unit vectors of the targets, which all heads share.
    return hidden + foresight.num_heads * num_bytes * width + FLOAT32 * width


def logit_bytes(config: RunConfig, rows: int, num_bytes: int, kind: str) -> tuple[int, int]:
    """Returns the bytes of the linear heads' loss (model/kernels.py) on a `kind` of device.

    The first number is kept for the backward pass. The second is in memory only while one chunk of
    one head is computed.
    """
    vocabulary = config.tokenizer.vocabulary
    width = config.model.width
    heads = config.foresight.k if config.foresight.level == "output" else 1
    heads += regularizer_cost(config).outputs
    # The gradients of the states and of the head.
    kept = heads * width * (num_bytes * rows + FLOAT32 * vocabulary)
    chunk = min(rows, chunk_rows(vocabulary, kind)) * vocabulary  # logits
    return kept, (FLOAT32 + num_bytes) * chunk


# ---- micro-batches


def next_divisor(share: int, least: int) -> int | None:
    """Returns the smallest number of micro-batches, from `least` on, that divides `share` images.

    Returns None if there is none.
    """
    return next((parts for parts in range(least, share + 1) if share % parts == 0), None)


def with_micro_batches(config: RunConfig, least: int, world: int) -> RunConfig:
    """Returns the same run in at least so many micro-batches. The global batch stays the same."""
    if least <= config.machine.micro_batches:
        return config
    parts = next_divisor(config.train.batch_size // world, least)
    return config if parts is None else config.with_machine(micro_batches=parts)


# ---- the check


def share_of_memory(gpus: float, hardware: Hardware, beside: int) -> tuple[int, str]:
    """Returns the bytes that one process may use, and what they are.

    On a GPU it is the fraction that `machine.gpus` says. On a CPU `beside` processes share the
    memory of the machine.
    """
    if hardware.kind == "cuda":
        total = torch.cuda.get_device_properties(hardware.device).total_memory
        if 0 < gpus < 1:
            return int(total * gpus), f"machine.gpus: {gpus:g} of {hardware.name}"
        return total, hardware.name
    what = "this machine" if beside == 1 else f"each of {beside} processes on this machine"
    return machine_bytes() // beside, what


def check_memory(config: RunConfig, hardware: Hardware, *, world: int = 1, beside: int = 1) -> None:
    """Raises UserError if the run cannot fit.

    `world` is the number of its processes. `beside` is the number of processes that share the
    machine; it is at least the number of the run's own processes there.

    On a GPU the activations may be smaller than estimated, and a run that does run out of memory
    resumes with more micro-batches, so this only warns. On a CPU the system would kill the process,
    so the micro-batches must be set beforehand.
    """
    model = config.model
    gpus = config.machine.gpus
    on_cpu = hardware.kind == "cpu"
    own = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun and Ray Train
    fixed, activations = device_bytes(config, hardware, world)
    available, what = share_of_memory(gpus, hardware, max(own, beside))
    has = f"{what} has {in_bytes(available)}"
    # There can be fewer trials, but not fewer processes of this one.
    fewer = ", or --max-concurrent with fewer trials at a time" if on_cpu and beside > own else ""
    # 1. What no number of micro-batches makes smaller.
    if fixed > available:
        teacher = " and the frozen teacher" if teacher_parameters(config) else ""
        advice = ", or machine.gpus: 1" if 0 < gpus < 1 else fewer
        raise UserError(
            f"weights, gradients, moments and EMA of model.size {model.size} (width {model.width}, "
            f"depth {model.depth}){teacher} take {in_bytes(fixed)}, but {has}: write a smaller "
            f"model.size{advice}"
        )
    if fixed + activations <= available:
        return
    # 2. What more micro-batches make smaller.
    short = (
        f"with about {in_bytes(activations)} of activations it takes "
        f"{in_bytes(fixed + activations)}, but {has}"
    )
    if not on_cpu:
        log.warning(f"{short}: if it runs out of memory, it resumes in more micro-batches")
        return
    parts = _fitting_parts(config, hardware, world, available)
    advice = "a smaller model.size, one image at a time does not fit"
    if parts is not None:
        advice = f"machine.micro_batches: {parts}"
    raise UserError(f"{short}: write {advice}{fewer}")


def _fitting_parts(config: RunConfig, hardware: Hardware, world: int, available: int) -> int | None:
    """Returns the smallest number of micro-batches with which the run fits, or None."""
    share = config.train.batch_size // world
    for parts in range(config.machine.micro_batches, share + 1):
        smaller = config.with_machine(micro_batches=parts)
        if share % parts == 0 and sum(device_bytes(smaller, hardware, world)) <= available:
            return parts
    return None
