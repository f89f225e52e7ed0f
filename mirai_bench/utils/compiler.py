"""torch.compile, with a fault mended that lets gradients on a GPU be silently wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

# An option that changes names of kernels alone. Compiled code is looked up by its options, so that what
# was compiled before the repair is not found again.
OPTIONS_OF_REPAIRED = {"triton.descriptive_names": "inductor_node"}
BARRIER = "tl.debug_barrier()"


def compiled(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """Returns torch.compile(function, **arguments), in which kernels wait for what they read back.

    A kernel for a GPU that stores a value, sums over a row, and loads the value again may load it in
    another warp than stored it, which before torch 2.14 nothing waits for (pytorch issue 190517). The
    loss is right and its gradient is not. Barriers are added as torch 2.14 adds them.
    """
    if add_barriers():
        arguments["options"] = OPTIONS_OF_REPAIRED | arguments.get("options", {})
    return torch.compile(function, **arguments)


def add_barriers() -> bool:
    """Lets Inductor write a barrier before each load of what the same kernel has stored, for good.

    Returns whether that was needed.
    """
    from torch._inductor.codegen.triton import TritonKernel

    if hasattr(TritonKernel, "reads_back"):  # they are added already
        return True
    if BARRIER in inspect.getsource(TritonKernel.load):
        return False
    load = TritonKernel.load
    get_load_buffer = TritonKernel.get_load_buffer

    def load_after_barrier(self: Any, name: str, index: Any) -> Any:
        # The names that were stored in an earlier loop of this kernel.
        self.reads_back = name in self.cse.invalidated_stores
        try:
            return load(self, name, index)
        finally:
            self.reads_back = False

    def buffer_after_barrier(self: Any, indexing: Any) -> Any:
        buffer = get_load_buffer(self, indexing)  # the lines among which the load is written
        if self.reads_back:
            buffer.writeline(BARRIER)
        return buffer

    TritonKernel.reads_back = False  # type: ignore[attr-defined]
    TritonKernel.load = load_after_barrier  # type: ignore[method-assign]
    TritonKernel.get_load_buffer = buffer_after_barrier  # type: ignore[method-assign]
    return True
