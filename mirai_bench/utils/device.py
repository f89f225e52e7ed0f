"""What a run computes on: the device, its memory, the precision, and whether to compile."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mirai_bench.utils.errors import UserError, shortened
from mirai_bench.utils.exactness import without_tf32

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]
Auto = Literal["auto"]

# Memory limits of a container (cgroup v2, then v1), in bytes. Outside of a container the file is
# missing, or it says "max" or a number beyond the machine's memory.
CGROUP = Path("/sys/fs/cgroup")
CONTAINER_LIMITS = (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes")
# Of /proc/cpuinfo, which has a paragraph per core: its fields, and those that number a processor of
# x86, and of ARM.
_FIELD = re.compile(r"^(.*?)\s*: *(.*)$", re.MULTILINE)
_CPU_NUMBERS = ("cpu family", "model", "CPU implementer", "CPU part")
# Model widths from which the option pays, as measured: bf16 products on a CPU, and compilation on a
# GPU. Below the third width the host launches kernels more slowly than a GPU computes them.
BF16_WIDTH = 256
COMPILE_WIDTH = 384
WIDTH_WITHOUT_GRAPHS = 768  # LlamaGen-B


@dataclass(frozen=True)
class Hardware:
    """What a run computes on. It is resolved once, at the start of a command, and handed on."""

    device: torch.device
    precision: Precision = "fp32"
    """The precision of matrix products under autocast."""
    compile: bool = False
    """Whether the model, the teacher and the losses are compiled with torch.compile."""
    graphs: bool = False
    """Whether what is compiled is recorded in CUDA graphs, which the host launches at once."""

    @classmethod
    def resolve(
        cls,
        device: str,
        precision: Precision | Auto,
        compile: bool | Auto,
        width: int,
    ) -> Hardware:
        """Replaces every "auto" by what this machine and a model of this width call for.

        `device` is resolved by `resolve_device`. `precision` becomes bf16 on a GPU, and on a CPU
        with AMX or AVX-512 bf16 products if the model is at least 256 wide. `compile` becomes true
        on a GPU if the model is at least 384 wide, because compilation takes up to two minutes.
        What is compiled is recorded in CUDA graphs if the model is less than 768 wide. Raises
        UserError if it is asked to compile for a GPU and cannot.
        """
        resolved = resolve_device(device)
        on_gpu = resolved.type == "cuda"
        if precision == "auto":
            pays = on_gpu or (width >= BF16_WIDTH and has_bf16_products())
            precision = "bf16" if pays else "fp32"
        wanted = on_gpu and width >= COMPILE_WIDTH if compile == "auto" else compile
        lacking = what_compiling_lacks() if wanted and on_gpu else None
        if lacking is not None:
            if compile != "auto":
                raise UserError(f"machine.compile is true, but {lacking}: install it, or write false")
            log.warning(f"training steps are not compiled, which is slower, because {lacking}")
        compile = wanted and lacking is None
        graphs = compile and on_gpu and width < WIDTH_WITHOUT_GRAPHS
        return cls(resolved, precision, compile, graphs)

    @property
    def kind(self) -> str:
        """Returns "cpu" or "cuda"."""
        return self.device.type

    @property
    def half(self) -> bool:
        """Tells whether matrix products are computed in half precision."""
        return self.precision == "bf16"

    @property
    def name(self) -> str:
        """Returns the name of the device, as records show it."""
        return device_name(self.device)


def resolve_device(name: str = "auto") -> torch.device:
    """Returns the device of this process. "auto" is a GPU if one is visible, and the CPU otherwise.

    If several processes share a machine, each one takes the GPU of its LOCAL_RANK. From then on this
    process computes without TF32: everything that computes asks here for its device. Raises UserError
    if `name` is not the name of a device, or asks for CUDA and no CUDA device is visible.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise UserError(
            f"device is {shortened(name)!r}, which is not a device: write auto, cpu, cuda or cuda:0"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"machine.device is {name}, but no CUDA device is visible: write device: auto or cpu",
        )
    if device.type == "cuda":
        without_tf32()
        # torchrun and Ray Train number the processes of a machine. Whoever writes cuda:N means it.
        local_rank = os.environ.get("LOCAL_RANK", "0")
        index = device.index if device.index is not None else int(local_rank) if local_rank.isdecimal() else 0
        if 0 < torch.cuda.device_count() <= index:
            found = f"{torch.cuda.device_count()} CUDA devices are visible"
            raise UserError(
                f"device is cuda:{index}, but {found}: write a lower number, or start fewer processes"
            )
        return torch.device("cuda", index)
    return device


def what_compiling_lacks() -> str | None:
    """Says what torch.compile lacks here to compile for a GPU, or returns None.

    Triton builds a small C module for each kernel, with this Python's headers.
    """
    compilers = [os.environ.get("CC"), "gcc", "clang", "cc"]
    if not any(name and shutil.which(name) for name in compilers):
        return "there is no C compiler (Debian: gcc)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers are missing (Debian: python3-dev)"
    return None


def cpu_info() -> str:
    """Returns what Linux says of each core, or "" on another system."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.is_file() else ""


@lru_cache
def has_bf16_products() -> bool:
    """Tells whether this CPU multiplies bf16 matrices in hardware (AMX or AVX-512)."""
    # Without these instructions the products are emulated, which is slower than fp32.
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_info().split())


def dropout_generator(device: torch.device) -> torch.Generator:
    """Returns the generator that dropout draws from: the default one of the device."""
    if device.type == "cpu":
        return torch.default_generator
    torch.cuda.init()  # before it there are no generators
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Returns the array as a tensor on the device, without waiting for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    # From ordinary memory a copy waits until the device has done all that it was given before.
    return tensor.pin_memory().to(device, non_blocking=True)


def device_name(device: torch.device) -> str:
    """Returns the name of a device, as records show it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


@lru_cache
def cpu_name() -> str:
    """Returns the kind of this machine's CPU and, in brackets, its number of cores.

    The kind is what decides how sums are rounded: the processor, and the instructions that PyTorch
    uses of it. For instance "AMD EPYC, family 25, model 17, AVX512 (2 cores)".
    """
    cores = [dict(_FIELD.findall(core)) for core in cpu_info().split("\n\n") if core.strip()]
    fields = cores[0] if cores else {}
    # A virtual machine, or an ARM processor, may not say its name. A name without a number, such as
    # "AMD EPYC", stands for several generations.
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.lower().removeprefix('cpu ')} {fields[key]}" for key in _CPU_NUMBERS if key in fields]
    kind = ", ".join([name, *numbers, torch.backends.cpu.get_cpu_capability()])
    return f"{kind} ({len(cores) or 1} cores)"


def machine_bytes() -> int:
    """Returns the memory of this machine in bytes, or its container's limit if that is lower."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [path.read_text().strip() for path in CONTAINER_LIMITS if path.is_file()]
    return min([whole, *map(int, filter(str.isdigit, texts))])  # not "max"


def fits(num_bytes: int, device: torch.device) -> bool:
    """Tells whether data of this size should be kept on the device.

    It may take half of a GPU's free memory, or a quarter of the memory that this machine or its
    container has.
    """
    # The rest is for the model and, on a CPU, for the other processes of a sweep.
    if device.type == "cuda":
        return num_bytes <= torch.cuda.mem_get_info(device)[0] // 2
    return num_bytes <= machine_bytes() // 4


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether a GPU, or PyTorch's allocator on the CPU, ran out of memory."""
    # On the CPU it is a RuntimeError that only its message tells from others.
    message = str(error)
    on_cpu = "DefaultCPUAllocator" in message and "allocate memory" in message
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and on_cpu)


def quantity(number: float, unit: str) -> str:
    """Writes a number with three digits and a unit that fits it: 0.0026 GB are 2.6 MB."""
    for prefix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def in_bytes(number: float) -> str:
    """Writes a number of bytes, in powers of 1000."""
    return quantity(number, "B")
