"""Weight files that cannot be read are one message, whatever is wrong with them."""

import pytest
import torch

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import read_tensors


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x80\x02."])
@pytest.mark.parametrize(
    ("name", "message"),
    [("w.pt", "it needs pickle to run code, or is damaged"), ("w.safetensors", "is not a safetensors file")],
)
def test_a_damaged_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / name)


def test_an_error_without_a_message_is_refused_as_well(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise EOFError

    monkeypatch.setattr(torch, "load", fails)
    (tmp_path / "w.pth").touch()
    with pytest.raises(UserError, match="was not read"):
        read_tensors(tmp_path / "w.pth")
