"""Whether a run fits into its device's memory: asked before anything is trained, so that it is not the system that says so hours later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from .cli import say
from .config import RunConfig
from .cross_entropy import part_rows
from .errors import UserError
from .flops import ffn_width
from .footprint import num_parameters, teacher_parameters
from .ranks import rank_and_world
from .trainer import resolve_device, resolve_precision

# The limit of a container (cgroup v2, v1); elsewhere there is no such file, or it says "max", or a number beyond the machine's memory.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class DeviceBytes(NamedTuple):
    """Of one process. Activations are those of its micro-batch that are kept for the backward pass."""

    fixed: int
    """weights, gradients, two moments, EMA and a frozen teacher in float32; under autocast also the half-precision copies of the weights"""
    activations: int


def projector_states(config: RunConfig, narrow: int) -> float:
    """Bytes a token that foresight inside the model keeps: SiLU's in- and outputs of each projector, three float32 vectors of its cosine."""
    f = config.foresight
    if f.level != "internal":
        return 0.0
    trunks = 1 if f.projector.shared_trunk else f.k
    return trunks * (f.projector.layers - 1) * 2 * narrow * f.projector.hidden + f.k * 3 * 4 * config.model.width


def logit_bytes(config: RunConfig, rows: int, narrow: int) -> tuple[int, int]:
    """(kept for the backward pass: each head's two gradients; there only while one part of a head is computed), see cross_entropy.py."""
    vocabulary, width = config.tokenizer.vocabulary, config.model.width
    heads = config.foresight.k if config.foresight.level == "output" else 1
    part = min(rows, part_rows(vocabulary, resolve_device(config).type)) * vocabulary
    return heads * width * (narrow * rows + 4 * vocabulary), (4 + narrow) * part


def device_bytes(config: RunConfig, half: bool, world: int | None = None) -> DeviceBytes:
    """Of one of `world` processes, by default those of its trial. In each block: the inputs of its seven matrix products, queries, keys
    and values, SwiGLU's factors, the float32 residual stream before and after both norms, the dropout masks. An eager step; attention's
    T x T scores are never kept by the kernels of a GPU."""
    generator, heads = num_parameters(config)
    m, cells = config.model, config.grid[0] * config.grid[1]
    rows = cells * config.train.batch_size // ((world or config.machine.workers) * config.machine.micro_batches)
    narrow = 2 if half else 4
    block = narrow * (6 * m.width + 4 * ffn_width(m.width)) + 4 * 4 * m.width + 2 * m.width
    token = m.depth * block + projector_states(config, narrow)
    copies = 2 * (generator + heads) if half else 0
    fixed = 4 * (4 * (generator + heads) + generator + teacher_parameters(config)) + copies
    return DeviceBytes(fixed, int(rows * token) + sum(logit_bytes(config, rows, narrow)))


def machine_bytes() -> int:
    """This machine's memory, or what its container may take of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    found += [int(text) for path in LIMITS if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return min(found)


def share_of_memory(config: RunConfig, device: torch.device, beside: int) -> tuple[int, str]:
    """(bytes of one process, what they are): of the GPU, or of this machine, whose memory `beside` processes share."""
    if device.type == "cuda":
        total, gpus = torch.cuda.get_device_properties(device).total_memory, config.machine.gpus
        name = torch.cuda.get_device_name(device)
        return (int(total * gpus), f"machine.gpus: {gpus:g} of {name}") if 0 < gpus < 1 else (total, name)
    return machine_bytes() // beside, "this machine" if beside == 1 else f"each of {beside} processes on this machine"


def more_parts(config: RunConfig, least: int) -> int | None:
    """machine.micro_batches: the smallest from `least` on that cuts this process's share of the batch evenly; None: there is none."""
    share = config.train.batch_size // rank_and_world()[1]
    return next((parts for parts in range(least, share + 1) if share % parts == 0), None)


def in_parts(config: RunConfig, least: int) -> RunConfig:
    """The same global batch in at least so many parts. The record shows machine.micro_batches."""
    parts = more_parts(config, least) if least > config.machine.micro_batches else None
    if parts is None:
        return config
    return config.model_copy(update={"machine": config.machine.model_copy(update={"micro_batches": parts})})


def check_memory(config: RunConfig, beside: int = 1) -> None:
    """Raises UserError where the run cannot fit on a machine that `beside` processes share, or at least those of the run itself.

    On a GPU, activations may prove smaller than estimated, and a run that does run out goes on in smaller parts; on a CPU the system would
    kill the process, so the parts are asked for beforehand.
    """
    device, (_, world) = resolve_device(config), rank_and_world()
    half = resolve_precision(config, device) == "bf16"
    fixed, activations = device_bytes(config, half, world)
    own = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    there, what = share_of_memory(config, device, max(own, beside))
    fewer = ", or --max-concurrent with fewer trials at a time" if device.type == "cpu" and beside > own else ""
    if fixed > there:
        teacher = " and the frozen teacher" if teacher_parameters(config) else ""
        raise UserError(
            f"weights, gradients, moments and EMA of model.size {config.model.size} (width {config.model.width}, depth "
            f"{config.model.depth}){teacher} take {gigabytes(fixed)}, but {what} has {gigabytes(there)}: write a smaller model.size"
            + (", or machine.gpus: 1" if 0 < config.machine.gpus < 1 else fewer)
        )
    if fixed + activations <= there:
        return
    short = f"with about {gigabytes(activations)} of activations it takes {gigabytes(fixed + activations)}, but {what} has {gigabytes(there)}"
    if device.type == "cuda":
        say(f"warning: {short}: where it runs out, it goes on with the batch in smaller parts")
        return
    parts: int | None = config.machine.micro_batches
    while parts and sum(device_bytes(in_parts(config, parts), half, world)) > there:
        parts = more_parts(config, parts + 1)
    raise UserError(
        f"{short}: write "
        + (f"machine.micro_batches: {parts}" if parts else "a smaller model.size, one image at a time does not fit")
        + fewer
    )


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
