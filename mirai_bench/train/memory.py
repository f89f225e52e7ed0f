"""Whether a run fits into its device's memory: asked before anything is trained, so that it is not the system that says so hours later."""

from __future__ import annotations

import os

import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cost import device_bytes, teacher_parameters
from mirai_bench.utils.cli import say
from mirai_bench.utils.device import machine_bytes, resolve_device, resolve_precision
from mirai_bench.utils.distributed import rank_and_world
from mirai_bench.utils.errors import UserError


def share_of_memory(config: RunConfig, device: torch.device, beside: int) -> tuple[int, str]:
    """(bytes of one process, what they are): of the GPU, or of this machine, whose memory `beside` processes share."""
    if device.type == "cuda":
        total, gpus = torch.cuda.get_device_properties(device).total_memory, config.machine.gpus
        name = torch.cuda.get_device_name(device)
        return (int(total * gpus), f"machine.gpus: {gpus:g} of {name}") if 0 < gpus < 1 else (total, name)
    return (
        machine_bytes() // beside,
        "this machine" if beside == 1 else f"each of {beside} processes on this machine",
    )


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
    fewer = (
        ", or --max-concurrent with fewer trials at a time" if device.type == "cpu" and beside > own else ""
    )
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
        + (
            f"machine.micro_batches: {parts}"
            if parts
            else "a smaller model.size, one image at a time does not fit"
        )
        + fewer
    )


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
