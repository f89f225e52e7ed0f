"""What a GPU compiles by default, captured on a CPU: graphs, recompilations, and equal losses."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mirai_bench.benchmark import workload
from mirai_bench.utils.device import Hardware
from tests.support.image_encoders import make_shallow
from tests.support.small_run import new_trainer

CPU = torch.device("cpu")
TINY = workload.Shape(3, 64, 4, 32, 4)


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet():
    """What other tests of this process have compiled counts towards torch's limit of recompilations."""
    torch.compiler.reset()


def new_step(arm):
    return workload.TrainStep(workload.run_config(TINY, arm, "fp32"), Hardware(CPU))


@pytest.mark.parametrize("arm", ["ntp", "mirai-e-k3", "mtp"])
def test_a_step_is_one_graph(arm):
    """There is no graph break in model, teacher and losses.

    The eager backend captures the graph and compiles nothing.
    """
    eager = new_step(arm)
    again = new_step(arm)
    again.trainer.forward = torch.compile(again.trainer.objective, backend="eager", fullgraph=True)
    assert again() == pytest.approx(eager(), rel=1e-5)


@pytest.mark.parametrize("arm", ["ntp", "mirai-e-k3", "mtp"])
def test_a_compiled_step_has_the_same_gradients(arm):
    """Torch 2.11 compiled a loss that was changed in place to one without any gradient."""
    norms = []
    for compiled in (False, True):
        trainer = new_step(arm).trainer
        if compiled:
            trainer.forward = torch.compile(trainer.objective, backend="aot_eager", fullgraph=True)
        norms.append([float(trainer.step(step)["grad_norm"]) for step in range(2)])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5) and norms[0][0] > 0


def test_a_changing_weight_compiles_no_graph_each():
    """There are two graphs: one without foresight, for its warm-up, and one with it."""
    ours = new_step("mirai-e-k3")
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(ours.trainer.objective, backend=counter, fullgraph=True, dynamic=False)
    batch = ours.trainer.codes.batch(seed=0, step=0, rank=0, world=1, batch_size=4)
    for weight in (None, None, 2.0, 1.5, 1.0):
        compiled(batch, batch.labels, None if weight is None else torch.tensor(weight))
    assert counter.frame_count == 2


def test_a_teacher_that_reads_pixels_breaks_the_graph_and_no_number(make_config, monkeypatch):
    pytest.importorskip("timm")
    make_shallow(monkeypatch, 1)
    encoder = {"name": "dinov2_s", "weights": "random"}
    config = make_config(foresight={"level": "internal", "source": "encoder", "encoder": encoder})
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        trainer = new_trainer(config)
        if compiled:
            trainer.forward = torch.compile(trainer.objective, backend="aot_eager", dynamic=False)
        losses.append([float(trainer.step(step)["foresight"]) for step in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0][0] > 0


@pytest.mark.slow
def test_the_compilers_kernels_drop_the_same_numbers(make_config):
    """Masks are a function of (seed, step, rank), compiled or not."""
    model = {"token_dropout": 0.5, "residual_dropout": 0.5, "ffn_dropout": 0.5}
    one, other = (
        new_trainer(make_config(model=model, machine={"compile": compiled})) for compiled in (False, True)
    )
    for step in range(3):
        assert float(other.step(step)["loss"]) == pytest.approx(float(one.step(step)["loss"]), rel=1e-6)
