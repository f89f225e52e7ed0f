"""TODO: utils.device."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.errors import UserError


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device, or of the machine as PyTorch's allocator on the CPU says it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and "DefaultCPUAllocator" in str(error)
        and "allocate memory" in str(error)
    )


def resolve_device(config: RunConfig) -> torch.device:
    name = config.machine.device
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device is cuda, but no CUDA device is visible: write device: auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def resolve_precision(config: RunConfig, device: torch.device) -> str:
    """auto: bf16 on a GPU, and on a CPU with AMX or AVX-512's bf16 products for widths from 256 (measured: narrower models are slower with
    it)."""
    if config.train.precision != "auto":
        return config.train.precision
    cpuinfo = Path("/proc/cpuinfo")
    products = cpuinfo.is_file() and not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpuinfo.read_text().split())
    return "bf16" if device.type == "cuda" or (products and config.model.width >= 256) else "fp32"


def resolve_compile(config: RunConfig, device: torch.device) -> bool:
    """auto: on a GPU from LlamaGen's size B on. Narrower models and CPUs would compile for longer than it saves."""
    if config.machine.compile == "auto":
        return device.type == "cuda" and config.model.width >= 768
    return config.machine.compile


def default_generator_of(device: torch.device) -> torch.Generator:
    """The one that dropout draws from."""
    if device.type == "cpu":
        return torch.default_generator
    torch.cuda.init()
    return torch.cuda.default_generators[
        torch.cuda.current_device() if device.index is None else device.index
    ]


@lru_cache
def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({len(names) or 1} cores)"


# The limit of a container (cgroup v2, v1); elsewhere there is no such file, or it says "max", or a number beyond the machine's memory.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_bytes() -> int:
    """This machine's memory, or what its container may take of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    found += [int(text) for path in LIMITS if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return min(found)


def fits(num_bytes: int, device: torch.device) -> bool:
    """Half of the device's free memory, or a quarter of the machine's, may hold codes."""
    if device.type == "cuda":
        return num_bytes <= torch.cuda.mem_get_info(device)[0] // 2
    return num_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
