"""What the official scripts switch on holds in a block and not after it."""

import pytest
import torch

from mirai_bench.benchmark.peer.checkout import official_flags


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_official_flags_hold_in_the_block_only():
    before = flags()
    with pytest.raises(ZeroDivisionError), official_flags():
        assert flags() == (True, True)
        raise ZeroDivisionError
    assert flags() == before
