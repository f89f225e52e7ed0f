"""The check of memory: what a run needs against what its device has, before it is trained."""

import pytest
import torch

from mirai_bench.foresight.encoders.masked_tokens import MaskedTokens
from mirai_bench.model.cost import teacher_parameters
from mirai_bench.model.transformer import build_model
from mirai_bench.sweep.job import preflight
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train import memory
from mirai_bench.train.memory import (
    check_memory,
    device_bytes,
    next_divisor,
    share_of_memory,
    with_micro_batches,
)
from mirai_bench.utils.device import Hardware
from mirai_bench.utils.errors import UserError
from tests.support.small_run import train

CPU = Hardware(torch.device("cpu"))
GPU = Hardware(torch.device("cuda", 0))


@pytest.fixture
def machine_of(monkeypatch):
    return lambda size: monkeypatch.setattr(memory, "machine_bytes", lambda: int(size))


def test_weights_that_do_not_fit_are_refused_before_training(make_config, machine_of, tmp_path):
    config = make_config()
    fixed, _ = device_bytes(config, CPU)
    machine_of(fixed - 1)
    message = r"take .* kB, but this machine has .* kB: write a smaller model.size"
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "journal.jsonl").exists() and RunFolder(tmp_path / "run").failure().final
    (wrong,) = preflight([config.model_dump(mode="json")] * 2)
    assert wrong.startswith("weights, gradients, moments and EMA of model.size nano")


@pytest.mark.parametrize("parts", [1, 4, 16])
def test_on_a_cpu_activations_that_do_not_fit_say_how_many_parts_do(make_config, machine_of, parts):
    """The number that the message says to write is accepted, and no smaller one is."""
    config = make_config()  # 16 images a batch
    machine_of(sum(device_bytes(with_micro_batches(config, parts, 1), CPU)))
    if parts > 1:
        with pytest.raises(UserError, match=f"machine.micro_batches: {parts}$"):
            check_memory(config, CPU)
        with pytest.raises(UserError, match="of activations it takes"):
            check_memory(with_micro_batches(config, parts // 2, 1), CPU)
    check_memory(with_micro_batches(config, parts, 1), CPU)


def test_one_image_that_does_not_fit(make_config, machine_of):
    config = make_config()
    machine_of(sum(device_bytes(with_micro_batches(config, 16, 1), CPU)) - 1)
    with pytest.raises(UserError, match="one image at a time does not fit"):
        check_memory(config, CPU)


def test_a_gpu_is_shared_as_machine_gpus_says_and_only_warns_of_activations(make_config, monkeypatch, capsys):
    config = make_config(machine={"gpus": 0.25, "device": "auto"})
    fixed, activations = device_bytes(config, CPU)
    total = 4 * (fixed + activations // 2)
    properties = type("Properties", (), {"total_memory": total})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    assert share_of_memory(0.25, GPU, 3) == (total // 4, "machine.gpus: 0.25 of A GPU")
    check_memory(config, GPU)
    assert "warning: with about" in (said := capsys.readouterr().err) and "in more micro-batches" in said
    properties.total_memory = 4 * fixed - 4
    with pytest.raises(UserError, match=r"or machine.gpus: 1$"):
        check_memory(config, GPU)


def test_trials_at_a_time_share_a_machines_memory(make_config, machine_of):
    """A single trial fits. Two at a time are refused, and the message says what helps."""
    config = make_config()
    machine_of(1.9 * device_bytes(config, CPU).fixed)
    check_memory(with_micro_batches(config, 16, 1), CPU)
    (wrong,) = preflight([config.model_dump(mode="json")] * 2, 2)
    assert "each of 2 processes on this machine" in wrong and wrong.endswith(
        ", or --max-concurrent with fewer trials at a time"
    )


def test_a_processes_share_is_at_most_that_of_its_run(make_config, machine_of, monkeypatch):
    config = make_config()
    machine_of(1.9 * device_bytes(config, CPU).fixed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"each of 2 processes .*: write a smaller model.size$"):
        check_memory(config, CPU)


@pytest.mark.parametrize(
    "foresight",
    [{"source": "frozen"}, {"source": "random"}, {"source": "encoder"}, {"source": "shuffled"}],
    ids=str,
)
def test_a_frozen_teacher_counts(make_config, foresight, machine_of):
    """It counts as many parameters as it has. Mirai-E needs no more: its teacher is the EMA."""
    with_teacher, without = (
        make_config(foresight={"level": "internal"} | more) for more in (foresight, {"source": "ema"})
    )
    teacher = MaskedTokens(with_teacher) if foresight["source"] != "frozen" else build_model(with_teacher)
    assert (
        teacher_parameters(with_teacher) == sum(p.numel() for p in teacher.parameters())
        and teacher_parameters(without) == 0
    )
    more = device_bytes(with_teacher, CPU).fixed - device_bytes(without, CPU).fixed
    assert more == 4 * teacher_parameters(with_teacher)
    machine_of(device_bytes(with_teacher, CPU).fixed - 1)
    with pytest.raises(UserError, match=r"and the frozen teacher take"):
        check_memory(with_teacher, CPU)


def test_parts_divide_the_batch(make_config):
    config = make_config(train={"batch_size": 30})
    assert [next_divisor(30, least) for least in (2, 4, 7, 16, 31)] == [2, 5, 10, 30, None]
    assert (
        with_micro_batches(config, 4, 1).machine.micro_batches == 5
        and with_micro_batches(with_micro_batches(config, 4, 1), 2, 1).machine.micro_batches == 5
    )
