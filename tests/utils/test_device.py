"""Facts about the machine: its memory, and what `auto` resolves to."""

from pathlib import Path

import pytest
import torch

from mirai_bench.utils import device as device_module
from mirai_bench.utils.device import is_out_of_memory, machine_bytes, resolve_compile, resolve_precision

CPU = torch.device("cpu")


def test_a_machines_memory_is_what_its_container_may_take(monkeypatch, tmp_path):
    whole, limit = machine_bytes(), tmp_path / "memory.max"
    monkeypatch.setattr(device_module, "LIMITS", (limit, tmp_path / "not there"))
    limit.write_text("max\n")
    assert machine_bytes() >= whole
    limit.write_text("1000000\n")
    assert machine_bytes() == 1_000_000


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(error.value), "on a CPU it is a plain RuntimeError"
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and not is_out_of_memory(
        RuntimeError("no memory of it")
    )


@pytest.mark.parametrize(
    ("width", "device", "expected"), [(768, "cuda", True), (384, "cuda", False), (768, "cpu", False)]
)
def test_what_is_compiled_by_default(width, device, expected, make_config):
    model = {"width": width, "heads": 12, "kv_heads": 12}
    config = make_config(model=model)
    assert config.machine.compile == "auto" and resolve_compile(config, torch.device(device)) == expected
    asked = make_config(model=model, machine={"compile": not expected})
    assert resolve_compile(asked, torch.device(device)) != expected


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 avx512f", "fp32"), ("avx2 avx512_bf16", "bf16"), ("amx_bf16", "bf16")]
)
def test_auto_precision_follows_the_products_of_the_cpu(flags, expected, make_config, monkeypatch):
    wide, narrow = (
        make_config(model={"width": w, "heads": 4, "kv_heads": 4}, train={"precision": "auto"})
        for w in (256, 64)
    )
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags} fsrm")
    assert resolve_precision(wide, CPU) == expected and resolve_precision(narrow, CPU) == "fp32"
