"""How exactly a GPU computes: float32 without TF32 always, sums in a fixed order if it is asked for.

A CPU does both by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# cuBLAS adds up in a fixed order if its workspace has a fixed size. It reads the variable when it starts.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACE = ":4096:8"  # eight buffers of 4 MiB


def without_tf32() -> None:
    """Makes products and convolutions of float32 numbers float32 ones in this process.

    In TF32, which cuDNN's convolutions use by default, ten of 23 bits of a fraction are left, and
    codes, images and features would depend on whether the card has it.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def fixed_order(wanted: bool) -> Iterator[None]:
    """Lets every kernel in the block add up in a fixed order, if that is wanted.

    An operation that has no such kernel raises an error. What was before is restored at the end.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    was_on = torch.are_deterministic_algorithms_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    workspace = os.environ.get(WORKSPACE)
    os.environ[WORKSPACE] = FIXED_WORKSPACE
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)
        cudnn.deterministic, cudnn.benchmark = before
        del os.environ[WORKSPACE]
        if workspace is not None:
            os.environ[WORKSPACE] = workspace
