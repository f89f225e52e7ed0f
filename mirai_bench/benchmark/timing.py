"""Clocks, alternation, memory, and the machine's own ceiling.

On a GPU a step's time is wall-clock between synchronisations. On a CPU it is taken twice: wall-clock, and CPU seconds of this process,
which other processes on the machine disturb much less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from mirai_bench.train import trainer as trainer_module
from mirai_bench.train.trainer import Trainer

CEILING_SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices


class Sample(NamedTuple):
    wall: float
    """s"""
    busy: float
    """s: CPU seconds over all threads on a CPU, wall-clock on a GPU"""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> Sample:
    synchronize(device)
    wall, busy = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    wall = time.perf_counter() - wall
    return Sample(wall, time.process_time() - busy if device.type == "cpu" else wall)


def alternate(
    works: dict[str, Callable[[], object]], device: torch.device, rounds: int, warmup: int = 2
) -> dict[str, list[Sample]]:
    """Each once a round, A B A B, after `warmup` rounds that do not count: what disturbs the machine disturbs all alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in works}
    for turn in range(warmup + rounds):
        for name, work in works.items():
            sample = timed(work, device)
            if turn >= warmup:
                samples[name].append(sample)
    return samples


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": middle, "q1": low, "q3": high, "n": len(values)}


def ratio(slow: list[Sample], fast: list[Sample], clock: str) -> dict[str, float]:
    """How many times as fast, round by round."""
    return spread([getattr(a, clock) / getattr(b, clock) for a, b in zip(slow, fast, strict=True)])


def ceiling(device: torch.device, precision: str, rounds: int = 5) -> float:
    """FLOP a busy second of square matrix products, the best of `rounds`."""
    side, dtype = CEILING_SIDE[device.type], {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    samples = alternate({"matmul": lambda: a @ b}, device, rounds)["matmul"]
    return 2.0 * side**3 / min(sample.busy for sample in samples)


class Memory:
    """Peak of a GPU's memory since this was made, over what was in use then; MiB. On a CPU None: its allocator keeps and reuses what is freed,
    so the resident set of one step says nothing about it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.base = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.base = torch.cuda.memory_allocated(device)

    def peak(self) -> float | None:
        return (
            (torch.cuda.max_memory_allocated(self.device) - self.base) / 2**20
            if self.device.type == "cuda"
            else None
        )


class Phases:
    """Exclusive seconds of the parts of a training step; a part that runs within another is not counted twice."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()
        self._stack: list[list[Any]] = []  # [name, since]
        self._undo: list[Callable[[], None]] = []

    def _switch(self, name: str | None) -> None:
        """Books the running part's time; then `name` runs, or with None the part around it again."""
        synchronize(self.device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1][0]] = (
                self.seconds.get(self._stack[-1][0], 0.0) + now - self._stack[-1][1]
            )
        if name is None:
            self._stack.pop()
        else:
            self._stack.append([name, now])
        if self._stack:
            self._stack[-1][1] = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch(name)
        try:
            yield
        finally:
            self._switch(None)

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Until `stop`, calls of owner.attribute are timed as `name`."""
        original, own = getattr(owner, attribute), attribute in vars(owner)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, watched)
        self._undo.append(lambda: setattr(owner, attribute, original) if own else delattr(owner, attribute))

    def stop(self) -> None:
        while self._undo:
            self._undo.pop()()


def phases_of(trainer: Trainer, steps: int, first: int) -> dict[str, float]:
    """Milliseconds of each part of a step, mean over `steps`. Compiled: forward, teacher and loss are one."""
    phases = Phases(trainer.device)
    phases.watch(trainer.codes, "batch", "batch")
    if trainer.compiled:
        phases.watch(trainer, "forward", "forward, teacher, loss")
    else:
        phases.watch(trainer, "forward", "loss")
        phases.watch(trainer.model, "trunk", "forward")
        if hasattr(trainer.objective.foresight, "source"):
            phases.watch(trainer.objective.foresight, "source", "teacher")
    phases.watch(torch.Tensor, "backward", "backward")
    phases.watch(nn.utils, "clip_grad_norm_", "optimizer")
    phases.watch(trainer.optimizer, "step", "optimizer")
    phases.watch(trainer_module, "update_ema", "EMA")
    try:
        for step in range(first, first + steps):
            with phases.part("other"):
                trainer.step(step)
    finally:
        phases.stop()
    return {name: 1e3 * seconds / steps for name, seconds in phases.seconds.items()}
