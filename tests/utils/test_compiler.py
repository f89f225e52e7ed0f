"""The repair of torch.compile. That kernels have the barrier is for tests/gpu."""

from types import SimpleNamespace

import pytest
import torch
from torch._inductor.codegen import triton

from mirai_bench.utils import compiler


class OldKernel:
    """Writes loads as TritonKernel of torch 2.11 does: without a barrier."""

    def __init__(self, *stored: str) -> None:
        self.cse = SimpleNamespace(invalidated_stores=set(stored))
        self.lines: list[str] = []

    def get_load_buffer(self, indexing: str) -> SimpleNamespace:
        """Returns what lines are written to."""
        return SimpleNamespace(writeline=self.lines.append)

    def load(self, name: str, index: str) -> None:
        """Writes a load."""
        self.get_load_buffer(index).writeline(f"tl.load({name})")


@pytest.fixture
def old_kernel(monkeypatch):
    """An Inductor that lacks the barrier."""
    kernel = type(
        "Kernel", (OldKernel,), {"load": OldKernel.load, "get_load_buffer": OldKernel.get_load_buffer}
    )
    monkeypatch.setattr(triton, "TritonKernel", kernel)
    return kernel


def test_a_barrier_stands_before_what_is_read_back_and_before_nothing_else(old_kernel):
    assert compiler.add_barriers()
    assert compiler.add_barriers(), "and is added once"
    kernel = old_kernel("out_ptr0")
    for name in ("in_ptr0", "out_ptr0", "in_ptr1"):
        kernel.load(name, "")
    assert kernel.lines == ["tl.load(in_ptr0)", compiler.BARRIER, "tl.load(out_ptr0)", "tl.load(in_ptr1)"]


def test_repaired_code_is_looked_up_under_another_name(old_kernel, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda function, **arguments: asked.update(arguments))
    compiler.compiled(abs, options={"fallback_random": True})
    assert asked == {"options": {"fallback_random": True} | compiler.OPTIONS_OF_REPAIRED}


def test_a_torch_that_has_the_barrier_is_left_alone():
    before = triton.TritonKernel.load
    if not compiler.add_barriers():
        assert triton.TritonKernel.load is before


def test_the_options_are_torchs():
    assert compiler.compiled(lambda x: x + 1, backend="eager")(torch.zeros(1)).item() == 1
    torch.compile(lambda x: x, options=compiler.OPTIONS_OF_REPAIRED)  # raises for an unknown one
