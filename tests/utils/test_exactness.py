"""TF32 is off where a GPU is chosen, and the fixed order of sums is switched on and off again."""

import os

import pytest
import torch

from mirai_bench.utils.device import resolve_device
from mirai_bench.utils.exactness import WORKSPACE, fixed_order


@pytest.fixture
def flags(monkeypatch):
    """Restores what the test changes in this process."""
    cudnn = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def modes():
    cudnn = torch.backends.cudnn
    on = torch.are_deterministic_algorithms_enabled()
    return on, cudnn.deterministic, cudnn.benchmark, os.environ.get(WORKSPACE)


def test_whoever_asks_for_a_gpu_computes_without_tf32(flags, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    resolve_device("auto")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_the_fixed_order_ends_with_its_block(flags):
    torch.backends.cudnn.benchmark = True
    before = modes()
    assert before == (False, False, True, None)
    with pytest.raises(KeyError), fixed_order(True):
        assert modes() == (True, True, False, ":4096:8")
        raise KeyError
    assert modes() == before


def test_a_workspace_of_ones_own_comes_back(flags, monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    before = modes()
    for wanted in (True, False):
        with fixed_order(wanted):
            assert (modes() == before) != wanted
        assert modes() == before
