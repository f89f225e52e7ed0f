"""Damaged headers of .npy files, with whatever NumPy raises for them."""

import numpy as np
import pytest

from mirai_bench.data.shards import open_shards
from mirai_bench.utils.arrays import UNREADABLE
from mirai_bench.utils.errors import UserError

HEADERS = {
    "an open bracket": b"{'descr': '<u2', 'fortran_order': False, 'shape': (3,",
    "an open string": b"{'descr': '<u2",
    "an indented line": b" x\n  y\n z\n",
    "a control character": b"{\x15}",
    "no mapping": b"[1, 2]",
    "a shape beyond 64 bits": b"{'descr': '<u2', 'fortran_order': False, 'shape': (%d,), }" % 10**30,
    "an unknown type": b"{'descr': '<q9', 'fortran_order': False, 'shape': (3,), }",
    "no UTF-8": b"\xff\xfe" * 20,
}


@pytest.fixture(params=HEADERS)
def damaged(request, tmp_path):
    """A folder of shards, of which one has this header."""
    header = HEADERS[request.param].ljust(118) + b"\n"
    file = tmp_path / "shards" / "00000.npy"
    file.parent.mkdir()
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    return tmp_path


def test_what_numpy_raises_is_known(damaged):
    for mode in ("r", None):
        with pytest.raises(UNREADABLE):
            np.load(damaged / "shards" / "00000.npy", mmap_mode=mode, allow_pickle=False)


def test_a_damaged_shard_is_one_message(damaged):
    with pytest.raises(UserError, match="a shard is missing or damaged"):
        open_shards(damaged, ["00000"])
