"""Checks, before training starts, that a run fits in device memory, so that it is not killed hours later.

It also chooses the number of micro-batches after an out-of-memory error.
"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

import torch

from mirai_bench.config.run_config import RunConfig, ffn_width
from mirai_bench.model.cost import num_parameters, teacher_parameters
from mirai_bench.model.kernels import chunk_rows
from mirai_bench.utils.device import Hardware, gigabytes, machine_bytes
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)


class DeviceBytes(NamedTuple):
    """The memory of one process."""

    fixed: int
    """Weights, gradients, two moments, EMA and a frozen teacher in float32. Under autocast also the half-precision \
copies of the weights."""
    activations: int
    """Activations of one micro-batch that are kept for the backward pass."""


def device_bytes(config: RunConfig, hardware: Hardware, world: int | None = None) -> DeviceBytes:
    """Estimates the memory of one of `world` processes. By default `world` is the number of workers of a trial.

    It is that of an eager step. The T x T scores of attention are not counted, because the kernels of a GPU never
    keep them. A teacher whose size is not known is not counted either.
    """
    generator, heads = num_parameters(config)
    num_bytes = 2 if hardware.half else 4
    processes = world or config.machine.workers
    rows = config.num_tokens * config.train.batch_size // (processes * config.machine.micro_batches)
    per_token = config.model.depth * _block_bytes(config.model.width, num_bytes) + projector_bytes(config, num_bytes)
    trained = generator + heads
    fixed = 4 * (4 * trained + generator + (teacher_parameters(config) or 0))
    if hardware.half:
        fixed += 2 * trained
    kept, transient = logit_bytes(config, rows, num_bytes, hardware.kind)
    return DeviceBytes(fixed, int(rows * per_token) + kept + transient)


def _block_bytes(width: int, num_bytes: int) -> int:
    """Returns the bytes per token that a block keeps for the backward pass.

    They are the inputs of its seven matrix products, queries, keys and values, SwiGLU's factors, the float32 residual
    stream before and after both norms, and the dropout masks.
    """
    products = num_bytes * (6 * width + 4 * ffn_width(width))
    residual_stream = 4 * 4 * width
    masks = 2 * width
    return products + residual_stream + masks


def projector_bytes(config: RunConfig, num_bytes: int) -> float:
    """Returns the bytes per token that level `internal` keeps for the backward pass.

    They are inputs and outputs of each projector's SiLU, and three float32 vectors of the cosine of each head.
    """
    foresight = config.foresight
    if not foresight.internal:
        return 0.0
    trunks = 1 if foresight.projector.shared_trunk else foresight.k
    hidden_layers = trunks * (foresight.projector.layers - 1)
    return hidden_layers * 2 * num_bytes * foresight.projector.hidden + foresight.k * 3 * 4 * config.model.width


def logit_bytes(config: RunConfig, rows: int, num_bytes: int, kind: str) -> tuple[int, int]:
    """Returns the bytes of the linear heads' loss (model/kernels.py) on a `kind` of device.

    The first number is kept for the backward pass (two gradients of each head). The second is in memory only while
    one chunk of one head is computed.
    """
    vocabulary = config.tokenizer.vocabulary
    width = config.model.width
    heads = config.foresight.k if config.foresight.level == "output" else 1
    chunk = min(rows, chunk_rows(vocabulary, kind)) * vocabulary
    return heads * width * (num_bytes * rows + 4 * vocabulary), (4 + num_bytes) * chunk


def next_divisor(config: RunConfig, least: int, world: int) -> int | None:
    """Returns the smallest number of micro-batches, from `least` on, that divides a process's share of the batch.

    Returns None if there is none.
    """
    share = config.train.batch_size // world
    return next((parts for parts in range(least, share + 1) if share % parts == 0), None)


def with_micro_batches(config: RunConfig, least: int, world: int) -> RunConfig:
    """Returns the same run in at least so many micro-batches. The global batch stays the same."""
    if least <= config.machine.micro_batches:
        return config
    parts = next_divisor(config, least, world)
    return config if parts is None else config.with_machine(micro_batches=parts)


def share_of_memory(config: RunConfig, hardware: Hardware, beside: int) -> tuple[int, str]:
    """Returns the bytes that one process may use, and what they are.

    On a CPU `beside` processes share the memory of the machine.
    """
    if hardware.kind == "cuda":
        total = torch.cuda.get_device_properties(hardware.device).total_memory
        gpus = config.machine.gpus
        if 0 < gpus < 1:
            return int(total * gpus), f"machine.gpus: {gpus:g} of {hardware.name}"
        return total, hardware.name
    what = "this machine" if beside == 1 else f"each of {beside} processes on this machine"
    return machine_bytes() // beside, what


def check_memory(config: RunConfig, hardware: Hardware, *, world: int = 1, beside: int = 1) -> None:
    """Raises UserError if the run cannot fit.

    `world` is the number of its processes. `beside` is the number of processes that share the machine; it is at
    least the number of the run's own processes there.

    On a GPU the activations may be smaller than estimated, and a run that does run out of memory resumes with more
    micro-batches, so this only warns. On a CPU the system would kill the process, so the micro-batches must be set
    beforehand.
    """
    own = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fixed, activations = device_bytes(config, hardware, world)
    available, what = share_of_memory(config, hardware, max(own, beside))
    on_cpu = hardware.kind == "cpu"
    fewer_trials = ", or --max-concurrent with fewer trials at a time" if on_cpu and beside > own else ""
    if fixed > available:
        shares_gpu = 0 < config.machine.gpus < 1
        advice = ", or machine.gpus: 1" if shares_gpu else fewer_trials
        raise UserError(_too_large(config, fixed, available, what) + advice)
    if fixed + activations <= available:
        return
    short = (
        f"with about {gigabytes(activations)} of activations it takes {gigabytes(fixed + activations)}, but {what} "
        f"has {gigabytes(available)}"
    )
    if not on_cpu:
        log.warning(f"{short}: if it runs out of memory, it resumes with the batch in more micro-batches")
        return
    parts = _fitting_parts(config, hardware, world, available)
    advice = (
        f"machine.micro_batches: {parts}" if parts else "a smaller model.size, one image at a time does not fit"
    )
    raise UserError(f"{short}: write {advice}{fewer_trials}")


def _too_large(config: RunConfig, fixed: int, available: int, what: str) -> str:
    teacher = " and the frozen teacher" if teacher_parameters(config) else ""
    return (
        f"weights, gradients, moments and EMA of model.size {config.model.size} (width {config.model.width}, depth "
        f"{config.model.depth}){teacher} take {gigabytes(fixed)}, but {what} has {gigabytes(available)}: write a "
        "smaller model.size"
    )


def _fitting_parts(config: RunConfig, hardware: Hardware, world: int, available: int) -> int | None:
    """Returns the smallest number of micro-batches with which the run fits, or None."""
    parts: int | None = config.machine.micro_batches
    while parts is not None:
        if sum(device_bytes(config.with_machine(micro_batches=parts), hardware, world)) <= available:
            return parts
        parts = next_divisor(config, parts + 1, world)
    return None
