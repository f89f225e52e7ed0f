"""Weight files that cannot be read are one message, whatever is wrong with them."""

import pytest
import torch
from safetensors.torch import save_file

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import load_into, read_tensors


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


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"lacks 2 tensors \(bias, …\)"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "x": torch.ones(1)}, r"has 1 that .*\(x, …\)"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"weight is \(3, 2\)"),
        ({"x" * 9999: torch.ones(1)}, "lacks 2 tensors"),
    ],
)
def test_weights_of_another_network_are_refused_in_a_short_message(tmp_path, state, message):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message) as refused:
        load_into(torch.nn.Linear(3, 2), tmp_path / "w.safetensors")
    assert len(str(refused.value)) < 600
