"""Clocks, alternating rounds, peak memory, the parts of a training step, the machine's ceiling.

Times are wall-clock between synchronisations of the device. On a CPU they are also taken in CPU
seconds of this process, which other processes on the machine disturb much less.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from mirai_bench.foresight.level import InternalLevel
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils.device import Hardware

WARMUP_ROUNDS = 2  # which do not count
CEILING_SIDE = {"cuda": 8192, "cpu": 2048}  # side of the square matrices of `ceiling`
# Dense bf16 products of NVIDIA's data sheets, FLOP per second, of the cards with NVLink (SXM).
DATA_SHEET = {"A100": 312e12, "H100": 989.4e12, "H200": 989.4e12}
MEBIBYTE = 2**20

Work = Callable[[], object]
T = TypeVar("T")
Step = TypeVar("Step", bound=Work)


class Sample(NamedTuple):
    """The time of one call."""

    wall: float
    """Wall-clock seconds."""
    busy: float
    """CPU seconds over all threads on a CPU; wall-clock seconds on a GPU."""


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Work, device: torch.device, calls: int = 1) -> Sample:
    """Returns the time of a call, mean over so many."""
    synchronize(device)
    wall_start = time.perf_counter()
    busy_start = time.process_time()
    for _ in range(calls):
        work()
    synchronize(device)
    wall = (time.perf_counter() - wall_start) / calls
    busy = (time.process_time() - busy_start) / calls
    return Sample(wall, busy if device.type == "cpu" else wall)


def alternate(
    works: Mapping[str, Work], device: torch.device, rounds: int, warmup: int = WARMUP_ROUNDS, calls: int = 1
) -> dict[str, list[Sample]]:
    """Times each of `works` once per round, A B A B, so that they are disturbed alike.

    The rounds of the warm-up do not count. Each time is the mean over so many calls.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in works}
    for number in range(warmup + rounds):
        for name, work in works.items():
            sample = timed(work, device, calls)
            if number >= warmup:
                samples[name].append(sample)
    return samples


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Returns what the function returns in a new Python process, which has cached nothing."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    quartiles = values * 3  # of a single value
    if len(values) > 1:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": quartiles[1], "q1": quartiles[0], "q3": quartiles[2], "n": len(values)}


def ratio(slow: list[Sample], fast: list[Sample], clock: Literal["wall", "busy"]) -> dict[str, float]:
    """Returns how many times as fast `fast` is, round by round."""
    return spread([getattr(a, clock) / getattr(b, clock) for a, b in zip(slow, fast, strict=True)])


@cache
def ceiling(device: torch.device, precision: str, rounds: int = 5) -> float:
    """Returns the FLOP per busy second of a product of square matrices, the best of `rounds`."""
    side = CEILING_SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    samples = alternate({"matmul": lambda: a @ b}, device, rounds)["matmul"]
    # A product of n x n matrices is n³ multiply-adds.
    return 2.0 * side**3 / min(sample.busy for sample in samples)


def data_sheet_flops(hardware: Hardware) -> float | None:
    """Returns the FLOP per second of dense bf16 products that the GPU's data sheet names, or None.

    No product reaches it: the card lowers its clock under load.
    """
    names = [name for name in DATA_SHEET if hardware.half and name in hardware.name]
    return DATA_SHEET[names[0]] if names else None


def with_peak(build: Callable[[], Step], device: torch.device) -> tuple[Step, float | None]:
    """Builds a step and calls it twice. Returns it with its peak memory in MiB.

    The peak is what exceeds the memory that was in use before. It is None on a CPU, whose
    allocator reuses freed memory, so that the resident set does not reflect one step.
    """
    before = 0
    if device.type == "cuda":
        torch.cuda.init()  # before it there is nothing to reset
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    step = build()
    step()
    step()  # whose gradients and moments are in memory from the start
    if device.type != "cuda":
        return step, None
    return step, (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE


def durations(marks: list[tuple[str, float]]) -> dict[str, float]:
    """Returns the seconds of each part.

    A mark is the name of a part and its start, where the part before it ends.
    """
    seconds: dict[str, float] = {}
    for (name, start), (_, end) in pairwise(marks):
        seconds[name] = seconds.get(name, 0.0) + end - start
    return seconds


def phases_of(trainer: Trainer, steps: int, first: int) -> dict[str, float]:
    """Returns the milliseconds of each part of a training step, mean over `steps`.

    Parts start where PyTorch calls a hook, so that "batch" includes the dropped labels, "backward"
    the clipping of the gradients, and "EMA" the counters. In a compiled step, forward, teacher and
    loss are one part.
    """
    marks: list[tuple[str, float]] = []

    def starts(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronize(trainer.device)
            marks.append((name, time.perf_counter()))

        return hook

    # 1. The hooks. What is called as `forward` is a module: the objective, or what distributes or
    #    compiles it.
    forward: Any = trainer.forward
    name = "forward, teacher, loss" if trainer.hardware.compile else "forward"
    level = trainer.objective.foresight
    hooks = [
        forward.register_forward_pre_hook(starts(name)),
        forward.register_forward_hook(starts("backward")),
        trainer.optimizer.register_step_pre_hook(starts("optimizer")),
        trainer.optimizer.register_step_post_hook(starts("EMA")),
    ]
    if not trainer.hardware.compile:
        hooks.append(trainer.model.norm.register_forward_hook(starts("loss")))
        if isinstance(level, InternalLevel):
            hooks.append(level.register_forward_pre_hook(starts("teacher")))
            hooks.append(level.projector.register_forward_pre_hook(starts("loss")))
    # 2. The steps.
    for step in range(first, first + steps):
        starts("batch")()
        trainer.step(step)
    starts("end")()
    for hook in hooks:
        hook.remove()
    return {name: 1e3 * seconds / steps for name, seconds in durations(marks).items()}
