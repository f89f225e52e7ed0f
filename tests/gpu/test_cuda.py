"""What only a GPU can show: compiled kernels, nothing that waits, memory, and whole runs.

Without a GPU all of it is skipped: `pytest tests/gpu` is the first command on a machine that has
one. It takes some minutes, most of them for compiling.
"""

import gc
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from mirai_bench.benchmark import workload
from mirai_bench.benchmark.timing import with_peak
from mirai_bench.evaluate.extractors import EXTRACTORS, FeatureCollector
from mirai_bench.evaluate.measure import compare
from mirai_bench.evaluate.references import Reference
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train import memory
from mirai_bench.train.run import train
from mirai_bench.utils import compiler
from mirai_bench.utils.device import Hardware, resolve_device
from mirai_bench.utils.exactness import fixed_order
from tests.support.small_run import new_trainer
from tests.support.small_run import train as train_in

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SMALL = workload.Shape(2, 256, 8, 1024, 16)
ARMS = ["ntp", "mirai-e-k3", "mtp"]


def new_step(arm, *, compiled, graphs=False, shape=SMALL, precision="bf16"):
    config = workload.run_config(shape, arm, precision)
    return workload.TrainStep(config, Hardware(torch.device("cuda", 0), precision, compiled, graphs))


def losses_and_norms(step, count=3):
    values = [step.trainer.step(number) for number in range(count)]
    return [float(value[name]) for value in values for name in ("ntp", "foresight", "grad_norm")]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_a_compiled_step_equals_an_eager_one(arm, graphs):
    """Torch 2.11 compiled one loss without a gradient, and another with one that was wrong."""
    eager = losses_and_norms(new_step(arm, compiled=False))
    compiled = losses_and_norms(new_step(arm, compiled=True, graphs=graphs))
    assert compiled == pytest.approx(eager, rel=1e-2)
    assert eager[2] > 0  # a gradient


def kernels_of(step):
    """Runs what compiles itself, and returns the sources of its kernels."""
    _, modules = run_and_get_code(step)
    return [kernel for module in modules for kernel in re.findall(r"'''(.*?)'''", module, re.DOTALL)]


def read_back(kernel):
    """Returns what stands between the store and the load of each pointer that a kernel reads back."""
    pointers = set(re.findall(r"tl\.store\((\w+) ", kernel))
    found = [re.search(rf"tl\.store\({p} (.*?)tl\.load\({p} ", kernel, re.DOTALL) for p in pointers]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("arm", ARMS)
def test_every_compiled_kernel_waits_for_what_it_reads_back(arm):
    """Torch 2.11 compiled a gradient of the cosine that other warps had not written yet."""
    kernels = kernels_of(new_step(arm, compiled=True))
    assert sum("tl.store(" in kernel for kernel in kernels) > 10
    assert all("tl.debug_barrier()" in between for kernel in kernels for between in read_back(kernel))


def test_a_kernel_that_reads_back_has_a_barrier():
    def scaled(x):
        """Stores y in one loop over a row, and reads it back in another one."""
        y = x.float() * 2
        return y, y / y.square().sum(-1, keepdim=True)

    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    kernels = kernels_of(lambda: compiler.compiled(scaled)(x))
    betweens = [between for kernel in kernels for between in read_back(kernel)]
    assert betweens and all("tl.debug_barrier()" in between for between in betweens)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_training_step_waits_for_the_device(compiled):
    step = new_step("mirai-e-k3", compiled=compiled)
    for number in range(2):
        step.trainer.step(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.trainer.step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_trainers_one_after_the_other_are_all_compiled(monkeypatch):
    """Torch compiles a function eight times, and then lets it run eagerly without a word."""
    real = torch.compile
    # Graphs are captured and not compiled, which takes seconds instead of minutes.
    monkeypatch.setattr(torch, "compile", lambda model, **_: real(model, backend="eager", dynamic=False))
    for width in range(64, 64 * 11, 64):
        counters.clear()
        new_step("ntp", compiled=True, shape=workload.Shape(1, width, 4, 64, 8))()
        assert counters["stats"]["unique_graphs"] == 1, width


def test_the_estimate_of_memory_is_that_of_an_eager_step():
    shape = workload.Shape(6, 768, 16, 16384, 32)
    config = workload.run_config(shape, "mirai-e-k3", "bf16")
    hardware = Hardware(torch.device("cuda", 0), "bf16")
    gc.collect()
    torch.cuda.empty_cache()
    _, peak = with_peak(lambda: workload.TrainStep(config, hardware), hardware.device)
    assert peak * 2**20 == pytest.approx(sum(memory.device_bytes(config, hardware, 1)), rel=0.15)


def test_a_run_that_does_not_fit_goes_through_in_more_parts(make_config, tmp_path):
    """What is left of the card is less than one whole batch needs."""
    model = {"depth": 4, "width": 512, "heads": 8}
    config = make_config(model=model, train={"batch_size": 1024, "epochs": 1}, machine={"device": "cuda"})
    folder = RunFolder(tmp_path)
    hardware = Hardware(torch.device("cuda", 0), "bf16")
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + 10**9
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        train(config, folder, hardware)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert folder.is_done


def test_a_run_on_the_digits_and_the_same_again(make_config, tmp_path):
    """The same up to rounding: attention's backward pass adds up in no fixed order."""
    config = make_config(
        foresight={"level": "internal", "k": 3},
        train={"epochs": 2},
        machine={"device": "cuda", "log_every": 10},
    )
    losses = []
    for name in ("one", "other"):
        train_in(config, tmp_path / name)
        lines = list(RunFolder(tmp_path / name).journal.lines())
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
        assert any(line["kind"] == "evaluation" for line in lines)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and len(losses[0]) > 3


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_with_a_fixed_order_two_trainings_are_equal(arm, compiled):
    found = []
    for _ in range(2):
        with fixed_order(True):
            found.append(losses_and_norms(new_step(arm, compiled=compiled), count=20))
    assert found[0] == found[1]


def test_convolutions_are_computed_in_float32():
    """TF32 has ten bits of a fraction, which is 1e-3."""
    resolve_device("cuda")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 64, 32, 32, generator=generator)
    weight = torch.randn(64, 64, 3, 3, generator=generator)
    exact = F.conv2d(images.double(), weight.double())
    found = F.conv2d(images.cuda(), weight.cuda()).cpu()
    assert (found - exact).abs().max() / exact.std() < 1e-5


def test_metrics_of_features_are_those_of_the_cpu():
    rng = np.random.default_rng(0)
    ours, theirs = (np.abs(rng.normal(size=(n, 64))) for n in (400, 500))
    found = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        sets = [FeatureCollector(len(x), EXTRACTORS["dinov2"], device) for x in (ours, theirs)]
        for one, features in zip(sets, (ours, theirs), strict=True):
            one.add({"pool": features})
        reference = Reference("", "", 500, sets[1].moments["pool"].gaussian(), None, theirs)
        found.append(compare(sets[0], reference, device))
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_a_checkpoint_goes_on_where_it_was(make_config):
    config = make_config(machine={"device": "cuda"}, foresight={"level": "internal", "k": 3})
    whole = new_trainer(config)
    values = [float(whole.step(number)["loss"]) for number in range(4)]
    first = new_trainer(config)
    for number in range(2):
        first.step(number)
    second = new_trainer(config)
    second.restore(first.checkpoint({"step": 2}))
    again = [float(second.step(number)["loss"]) for number in range(2, 4)]
    assert again == pytest.approx(values[2:], rel=1e-3)
