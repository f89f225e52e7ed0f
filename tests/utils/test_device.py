"""Facts about the machine: its memory, and what `auto` resolves to."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from mirai_bench.train.trainer import resolve_hardware
from mirai_bench.utils import device as device_module
from mirai_bench.utils.device import (
    fits,
    has_bf16_products,
    in_bytes,
    is_out_of_memory,
    machine_bytes,
    quantity,
    resolve_device,
)
from mirai_bench.utils.errors import UserError


@pytest.fixture
def container(monkeypatch, tmp_path):
    """Writes the memory limit of a container."""
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device_module, "CONTAINER_LIMITS", (limit, tmp_path / "not there"))
    return limit.write_text


def test_a_machines_memory_is_what_its_container_may_take(container):
    whole = machine_bytes()
    container("max\n")
    assert machine_bytes() >= whole
    container("1000000\n")
    assert machine_bytes() == 1_000_000


def test_codes_stay_in_memory_only_if_the_container_has_room_for_them(container):
    cpu = torch.device("cpu")
    assert fits(1_000_000, cpu)
    container("2000000\n")
    assert fits(500_000, cpu)
    assert not fits(500_001, cpu)


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(error.value), "on a CPU it is a plain RuntimeError"
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("no memory of it"))


X86 = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"
ARM = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n"


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (2 * X86, "AMD EPYC, family 25, model 17, AVX2 (2 cores)"),
        (ARM.format(0), "aarch64, implementer 0x41, part 0xd40, AVX2 (1 cores)"),
        ("", "aarch64, AVX2 (1 cores)"),
    ],
)
def test_the_kind_of_a_cpu(monkeypatch, info, expected):
    monkeypatch.setattr(device_module, "cpu_info", lambda: info)
    monkeypatch.setattr(device_module.platform, "processor", str)
    monkeypatch.setattr(device_module.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert device_module.cpu_name.__wrapped__() == expected


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("width", "device", "expected"), [(768, "cuda", True), (192, "cuda", False), (768, "cpu", False)]
)
def test_what_is_compiled_by_default(width, device, expected, make_config, a_gpu):
    model = {"width": width, "heads": 12, "kv_heads": 12}
    config = make_config(model=model, machine={"device": device})
    assert config.machine.compile == "auto" and resolve_hardware(config).compile == expected
    asked = make_config(model=model, machine={"device": device, "compile": not expected})
    assert resolve_hardware(asked).compile != expected


@pytest.mark.parametrize(
    ("width", "device", "expected"), [(384, "cuda", True), (768, "cuda", False), (384, "cpu", False)]
)
def test_small_compiled_models_are_recorded_in_cuda_graphs(width, device, expected, make_config, a_gpu):
    model = {"width": width, "heads": 12, "kv_heads": 12}
    config = make_config(model=model, machine={"device": device})
    assert resolve_hardware(config).graphs == expected
    eager = make_config(model=model, machine={"device": device, "compile": False})
    assert not resolve_hardware(eager).graphs


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 avx512f", "fp32"), ("avx2 avx512_bf16", "bf16"), ("amx_bf16", "bf16")]
)
def test_auto_precision_follows_the_products_of_the_cpu(flags, expected, make_config, monkeypatch):
    wide, narrow = (
        make_config(model={"width": width, "heads": 4, "kv_heads": 4}, train={"precision": "auto"})
        for width in (256, 64)
    )
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags} fsrm")
    has_bf16_products.cache_clear()
    try:
        assert resolve_hardware(wide).precision == expected
        assert resolve_hardware(narrow).precision == "fp32"
    finally:
        has_bf16_products.cache_clear()


def test_each_process_of_a_machine_takes_the_gpu_of_its_local_rank(monkeypatch, a_gpu):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 3)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "no CUDA device is visible"), ("gpu", "which is not a device: write auto, cpu")],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        resolve_device(name)


def test_a_missing_compiler_is_said_before_the_first_step(make_config, a_gpu, monkeypatch, caplog):
    model = {"width": 768, "heads": 12, "kv_heads": 12}
    config = make_config(model=model, machine={"device": "cuda"})
    asked = make_config(model=model, machine={"device": "cuda", "compile": True})
    with monkeypatch.context() as patched:
        patched.delenv("CC", raising=False)
        patched.setattr(shutil, "which", lambda name: None)
        assert not resolve_hardware(config).compile
        assert "not compiled, which is slower, because there is no C compiler" in caplog.text
        with pytest.raises(UserError, match=r"machine\.compile is true, but there is no C compiler"):
            resolve_hardware(asked)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UserError, match="Python's headers are missing"):
        resolve_hardware(asked)


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "xpu", "cuda:x", "", "cuda:-1", "cpu " * 9999])
def test_what_is_no_device_of_ours_is_refused(name):
    with pytest.raises(UserError, match="write auto, cpu, cuda or cuda:0") as refused:
        resolve_device(name)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(("name", "local_rank"), [("cuda:3", None), ("cuda", "2")])
def test_a_number_beyond_the_devices_is_refused(monkeypatch, name, local_rank):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(UserError, match="2 CUDA devices are visible"):
        resolve_device(name)


def test_quantities_have_a_unit_that_fits_them():
    assert [in_bytes(number) for number in (0, 999, 2_600_000, 6.56e9)] == [
        "0 B",
        "999 B",
        "2.6 MB",
        "6.56 GB",
    ]
    assert quantity(6.766e7, "FLOP") == "67.7 MFLOP" and quantity(1.5e19, "FLOP") == "15 EFLOP"
