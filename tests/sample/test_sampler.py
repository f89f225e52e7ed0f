"""Samples do not depend on the batch size, equal teacher forcing, and equal the step that a GPU records."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend

from mirai_bench.config.protocol import Protocol
from mirai_bench.config.run_config import ModelConfig
from mirai_bench.model.transformer import ARModel
from mirai_bench.sample.__main__ import command
from mirai_bench.sample.draws import draw, draw_classes, uniforms
from mirai_bench.sample.sampler import Sampler, stretches
from mirai_bench.utils.cli import run

GRID = (4, 4)


@pytest.fixture(scope="module")
def model():
    model = ARModel(ModelConfig(size="nano", depth=2, width=32, heads=2), 7, 3, GRID).init_weights(
        torch.Generator().manual_seed(0)
    )
    torch.nn.init.normal_(model.output.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def protocol(**fields) -> Protocol:
    return Protocol(name="test", num_samples=10, **fields)


def codes(model, indices, p, batch_size):
    parts = []
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        parts.append(Sampler(model, p, len(part))(draw_classes(p, part, 3), part))
    return torch.cat(parts)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_are_equal_for_batch_1_3_and_8_and_any_order(model, scale):
    p = protocol(cfg_scale=scale)
    whole = codes(model, range(8), p, 8)
    assert torch.equal(codes(model, range(8), p, 1), whole)
    assert torch.equal(codes(model, range(8), p, 3), whole)
    assert torch.equal(codes(model, [5, 2], p, 2), whole[[5, 2]])
    assert not torch.equal(codes(model, range(8), protocol(cfg_scale=scale, seed=1), 8), whole)


def test_generation_is_teacher_forcing_one_token_after_the_other(model):
    p = protocol()
    labels = draw_classes(p, range(4), 3)
    tokens = Sampler(model, p, 4)(labels, range(4))
    uniform = torch.from_numpy(np.stack([uniforms(0, i, 17)[1:] for i in range(4)]))
    with torch.no_grad():
        logits = model(tokens, labels).logits
    for position in range(16):
        assert torch.equal(draw(logits[:, position], uniform[:, position]), tokens[:, position])


def replayed(sampler, step):
    """The sampler as it is on a GPU, `step` in the place of its recorded steps."""
    ends = stretches(16)
    sampler.recorded = [
        (SimpleNamespace(replay=lambda end=end: step(end)), end - start)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return sampler


@pytest.mark.parametrize(
    "fields", [{}, {"cfg_scale": 2.0}, {"cfg_scale": 1.5, "top_k": 4, "top_p": 0.9, "temperature": 0.8}]
)
def test_the_step_that_a_gpu_records_samples_the_same_codes(model, fields):
    p = protocol(**fields)
    sampler = Sampler(model, p, 8)
    replayed(sampler, sampler.next_step)
    for indices in (
        range(8),
        range(8, 16),
    ):  # the second batch finds the first one's keys and values in the cache
        labels = draw_classes(p, indices, 3)
        assert torch.equal(sampler(labels, indices), Sampler(model, p, 8)(labels, indices))


def test_the_recorded_step_is_one_graph_for_all_positions(model):
    """No read on the host, no shape that depends on the position: what recording on a GPU asks for."""
    p, counter = protocol(cfg_scale=2.0, top_k=4, top_p=0.9), CompileCounterWithBackend("aot_eager")
    sampler, labels = Sampler(model, p, 4), draw_classes(p, range(4), 3)
    step = torch.compile(lambda: sampler.next_step(16), backend=counter, fullgraph=True)
    codes = replayed(sampler, lambda end: step())(labels, range(4))
    assert counter.frame_count == 1
    assert torch.equal(codes, Sampler(model, p, 4)(labels, range(4)))


@pytest.mark.parametrize("tokens", [1, 3, 16, 64, 256])
def test_stretches_end_with_the_tokens(tokens):
    ends = stretches(tokens)
    assert ends == sorted(set(ends)) and ends[0] >= 1 and ends[-1] == tokens and len(ends) == min(tokens, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_recorded_graphs_sample_what_single_launches_do(model, scale):
    p, on_gpu = protocol(cfg_scale=scale), copy.deepcopy(model).cuda()
    sampler, single = Sampler(on_gpu, p, 8), Sampler(on_gpu, p, 8)
    assert len(sampler.recorded) == 4
    single.recorded = None
    for indices in (range(8), range(8, 16)):
        labels = draw_classes(p, indices, 3)
        assert torch.equal(sampler(labels, indices), single(labels, indices))


def test_command_writes_a_grid_and_the_samples(trained_run, tmp_path, capsys):
    arguments = [
        str(trained_run),
        "--num",
        "12",
        "--grid",
        str(tmp_path / "out.png"),
        "--npz",
        str(tmp_path / "out.npz"),
    ]
    assert run(command, arguments) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out.npz"), str(tmp_path / "out.png")]
    assert Image.open(tmp_path / "out.png").size == (340, 68)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert file["arr_0"].shape == (12, 8, 8, 3) and file["arr_1"].tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere", "--grid", "x.png"], "not a run folder"), (["x"], "nothing to write")],
)
def test_command_refuses_in_one_message(arguments, message, capsys):
    assert run(command, arguments) == 2
    assert message in capsys.readouterr().err
