"""Samples do not depend on the batch size, equal teacher forcing, and equal the step that a GPU records."""

import copy
import functools
import itertools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from mirai_bench.config.model_config import ModelConfig
from mirai_bench.config.protocol import Protocol
from mirai_bench.model.cache import DevicePosition
from mirai_bench.model.transformer import ARModel
from mirai_bench.sample import sampler as sampling
from mirai_bench.sample.__main__ import command
from mirai_bench.sample.draws import draw, draw_classes, uniforms
from mirai_bench.sample.sampler import ImageSampler, Sampler, equal_parts, stretches, to_sample
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
        parts.append(Sampler(model, p, len(part))(draw_classes(p, 0, part, 3), part))
    return torch.cat(parts)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_are_equal_for_batch_1_3_and_8_and_any_order(model, scale):
    p = protocol(cfg_scale=scale)
    whole = codes(model, range(8), p, 8)
    assert torch.equal(codes(model, range(8), p, 1), whole)
    assert torch.equal(codes(model, range(8), p, 3), whole)
    assert torch.equal(codes(model, [5, 2], p, 2), whole[[5, 2]])
    assert not torch.equal(codes(model, range(8), protocol(cfg_scale=scale, seed=1), 8), whole)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_rows_without_an_image_change_no_sample(model, scale):
    p = protocol(cfg_scale=scale)
    sampler = Sampler(model, p, 8)
    sampler(draw_classes(p, 0, range(8, 16), 3), range(8, 16))
    found = sampler(draw_classes(p, 0, range(5), 3), range(5))
    assert torch.equal(found, codes(model, range(5), p, 5))


def test_a_model_in_bfloat16_samples(model):
    half = copy.deepcopy(model).to(torch.bfloat16)
    p = protocol(cfg_scale=2.0)
    found = codes(half, range(8), p, 8)
    assert found.shape == (8, 16) and found.min() >= 0 and found.max() < 7
    # Rounding moves a few numbers into a neighbour's interval; the first token has seen least of it.
    assert (found[:, 0] == codes(model, range(8), p, 8)[:, 0]).sum() >= 6


@pytest.mark.parametrize(
    ("count", "most", "size"), [(500, 500, 500), (500, 1000, 500), (500, 240, 167), (500, 1, 1), (30, 7, 6)]
)
def test_parts_are_equal(count, most, size):
    assert equal_parts(count, most) == size <= most
    parts = -(-count // size)
    assert parts == -(-count // most) and parts * size - count < parts


class Codes:
    """A tokenizer whose images are the codes."""

    def decode(self, codes):
        return codes


class Limited(Sampler):
    """Runs out of memory above `most` images. `made` notes the batch of each sampler."""

    most = 8
    made: list[int] = []  # noqa: RUF012

    def __init__(self, model, protocol, batch, run_seed):
        self.made.append(batch)
        if batch > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().__init__(model, protocol, batch, run_seed)


@pytest.fixture
def limited(monkeypatch):
    monkeypatch.setattr(Limited, "made", [])
    monkeypatch.setattr(sampling, "Sampler", Limited)
    return Limited


def images_of(sampler, indices):
    return torch.cat([images for images, _ in sampler(indices)])


def test_samples_are_a_function_of_three_seeds(model):
    """The protocol's, the run's, and the image's number."""
    p = protocol()
    labels = draw_classes(p, 0, range(8), 3)
    drawn = {
        (seed, run_seed): Sampler(model, protocol(seed=seed), 8, run_seed)(labels, range(8))
        for seed in (0, 1)
        for run_seed in (0, 1)
    }
    for one, other in itertools.combinations(drawn, 2):
        assert not torch.equal(drawn[one], drawn[other])
    assert torch.equal(drawn[0, 1], Sampler(model, p, 8, 1)(labels, range(8)))
    uniform = protocol(class_rule="uniform")
    assert not torch.equal(draw_classes(uniform, 0, range(50), 3), draw_classes(uniform, 1, range(50), 3))


def test_a_protocol_may_sample_in_bfloat16(model):
    """The model that is evaluated stays as it is."""
    p = protocol(precision="bf16")
    narrow = to_sample(model, p)
    assert narrow.tok_embeddings.weight.dtype == torch.bfloat16
    assert model.tok_embeddings.weight.dtype == torch.float32 and to_sample(model, protocol()) is model
    assert images_of(ImageSampler(narrow, Codes(), p, 0, 4), range(8)).shape == (8, 16)


def test_one_sampler_serves_all_batches_until_it_is_released(model, limited):
    p = protocol(cfg_scale=2.0)
    sampler = ImageSampler(model, Codes(), p, 0, 4)
    found = torch.cat([images_of(sampler, range(8)), images_of(sampler, range(8, 16))])
    assert limited.made == [4]
    sampler.release()
    assert sampler.sampler is None and torch.equal(images_of(sampler, range(8)), found[:8])
    assert limited.made == [4, 4]
    assert torch.equal(found, codes(model, range(16), p, 16))


def test_a_last_part_is_filled_up_on_a_gpu_only(model, limited):
    p = protocol()
    sampler = ImageSampler(model, Codes(), p, 0, 4)
    expected = images_of(sampler, range(6))
    assert limited.made == [4, 2], "a smaller batch takes less time"
    limited.made.clear()
    sampler = ImageSampler(model, Codes(), p, 0, 4)
    sampler.on_gpu = True
    assert torch.equal(images_of(sampler, range(6)), expected)
    assert limited.made == [4], "it would have been recorded again"


def test_out_of_memory_halves_the_batch_and_samples_the_same_images(model, limited, monkeypatch, caplog):
    monkeypatch.setattr(limited, "most", 3)
    p = protocol(cfg_scale=2.0)
    sampler = ImageSampler(model, Codes(), p, 0, 9)
    with caplog.at_level(logging.WARNING):
        batches = list(sampler(range(9)))
    assert limited.made == [9, 5, 3] and sampler.batch_size == 3
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2]] * 3
    assert torch.equal(torch.cat([images for images, _ in batches]), codes(model, range(9), p, 9))
    assert "out of memory while sampling 9 images at a time: going on with 5" in caplog.text
    list(sampler(range(9, 18)))
    assert limited.made == [9, 5, 3], "the smaller batch stays"


def test_out_of_memory_with_one_image_and_other_errors_are_raised(model, limited, monkeypatch):
    monkeypatch.setattr(limited, "most", 0)
    with pytest.raises(torch.OutOfMemoryError):
        list(ImageSampler(model, Codes(), protocol(), 0, 4)(range(4)))
    assert limited.made == [4, 2, 1]
    monkeypatch.setattr(limited, "most", 8)

    def decode(codes):
        raise RuntimeError("another fault")

    sampler = ImageSampler(model, SimpleNamespace(decode=decode), protocol(), 0, 4)
    with pytest.raises(RuntimeError, match="another fault"):
        list(sampler(range(4)))
    assert sampler.batch_size == 4


def test_generation_is_teacher_forcing_one_token_after_the_other(model):
    p = protocol()
    labels = draw_classes(p, 0, range(4), 3)
    tokens = Sampler(model, p, 4)(labels, range(4))
    uniform = torch.from_numpy(np.stack([uniforms(0, 0, i, 17)[1:] for i in range(4)]))
    with torch.no_grad():
        logits = model(tokens, labels).logits
    for position in range(16):
        assert torch.equal(draw(logits[:, position], uniform[:, position]), tokens[:, position])


def replayed(sampler, step):
    """The sampler as it is on a GPU, `step` in the place of its recorded steps."""
    ends = stretches(sampler.model.tokens)
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
        labels = draw_classes(p, 0, indices, 3)
        assert torch.equal(sampler(labels, indices), Sampler(model, p, 8)(labels, indices))


def test_the_recorded_step_is_one_graph_for_all_positions(model):
    """No read on the host, no shape that depends on the position: what recording on a GPU asks for."""
    p, counter = protocol(cfg_scale=2.0, top_k=4, top_p=0.9), CompileCounterWithBackend("aot_eager")
    sampler, labels = Sampler(model, p, 4), draw_classes(p, 0, range(4), 3)
    step = torch.compile(lambda: sampler.next_step(16), backend=counter, fullgraph=True)
    codes = replayed(sampler, lambda end: step())(labels, range(4))
    assert counter.frame_count == 1
    assert torch.equal(codes, Sampler(model, p, 4)(labels, range(4)))


@pytest.fixture
def compile_with(monkeypatch):
    """Returns a function that makes torch.compile use another backend for the rest of the test."""

    def choose(backend):
        torch.compiler.reset()
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        return backend

    yield choose
    torch.compiler.reset()


@pytest.fixture(scope="module")
def grouped():
    """A model whose queries share heads of keys and values."""
    config = ModelConfig(size="nano", depth=2, width=64, heads=4, kv_heads=2)
    model = ARModel(config, 256, 3, GRID).init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.output.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fields", [{"cfg_scale": 2.0}, {"top_k": 100, "top_p": 0.9, "temperature": 0.8}])
def test_the_compiled_step_samples_the_same_codes(grouped, compile_with, backend, fields):
    compile_with(backend)
    p = protocol(**fields)
    sampler = Sampler(grouped, p, 8)
    replayed(sampler, sampler.compiled_step)
    for indices in (range(8), range(8, 16)):
        labels = draw_classes(p, 0, indices, 3)
        assert torch.equal(sampler(labels, indices), Sampler(grouped, p, 8)(labels, indices))


def test_samplers_are_all_compiled_and_those_of_a_kind_once(compile_with):
    """Torch would run what it has compiled eight times before as it is, without a word."""
    counter = compile_with(CompileCounter())
    config = ModelConfig(size="nano", depth=1, width=32, heads=2)
    p = protocol()
    for number in range(1, 11):
        for seed in (0, 1):  # of other weights
            model = ARModel(config, 7, 3, (1, 2)).init_weights(torch.Generator().manual_seed(seed))
            sampler = Sampler(model, p, number)
            labels = draw_classes(p, 0, range(number), 3)
            replayed(sampler, sampler.compiled_step)(labels, range(number))
            assert counter.frame_count == 2 * number, "a step for each of two stretches"


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
        labels = draw_classes(p, 0, indices, 3)
        assert torch.equal(sampler(labels, indices), single(labels, indices))


@pytest.fixture
def on_gpu():
    """A model on a GPU with a head and a vocabulary as large as LlamaGen's, three layers of it."""
    config = ModelConfig(size="nano", depth=3, width=768, heads=12)
    model = ARModel(config, 16384, 3, GRID).init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.output.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    yield model.requires_grad_(False).cuda()
    torch.compiler.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for a GPU")
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_compiled_graphs_sample_what_eager_ones_do(on_gpu, scale):
    p = protocol(cfg_scale=scale)
    sampler, eager = Sampler(on_gpu, p, 128, compile=True), Sampler(on_gpu, p, 128)
    torch.compiler.reset()  # what is recorded does not need what was compiled
    for indices in (range(128), range(128, 256)):
        labels = draw_classes(p, 0, indices, 3)
        same = sampler(labels, indices) == eager(labels, indices)
        assert same.all(1).double().mean() >= 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for a GPU")
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@torch.inference_mode()
def test_compiled_decoding_has_the_log_probabilities_of_eager_decoding(on_gpu, dtype, most):
    model = on_gpu.to(dtype)
    tokens = torch.randint(16384, (8, 16), generator=torch.Generator().manual_seed(2)).cuda()
    inputs = model.embed(tokens[:, :-1], torch.zeros_like(tokens[:, 0]))  # (8, 16, D)

    def log_p(decode):
        cache = model.new_cache(8)
        steps = (decode(inputs[:, at], torch.tensor([at]).cuda(), cache) for at in range(16))
        return torch.stack([step.float().log_softmax(-1) for step in steps], 1)

    def decode(x, at, cache):
        return model.decode(x, DevicePosition(at, 16), cache)

    eager = log_p(decode)
    assert (log_p(torch.compile(decode, dynamic=False, fullgraph=True)) - eager).abs().max() < most


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="records CUDA graphs on two devices")
def test_graphs_are_recorded_on_a_device_that_is_not_the_current_one(model):
    p = protocol(cfg_scale=2.0)
    labels = draw_classes(p, 0, range(8), 3)
    found = [Sampler(copy.deepcopy(model).to(f"cuda:{i}"), p, 8)(labels, range(8)) for i in (0, 1)]
    assert torch.cuda.current_device() == 0
    assert torch.equal(found[0].cpu(), found[1].cpu())


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


def test_a_run_is_sampled_by_its_name_with_its_own_number_of_threads(
    make_config, shared_runs, trained_run, tmp_path, monkeypatch
):
    """Spinning threads on a busy machine cost more than they help: the run says how many there are."""
    import json

    plan = {"axis": "named", "profile": "digits", "question": "?", "baseline": "a", "arms": ["a"]}
    cells = [{"arm": "a", "seed": 0, "fingerprint": trained_run.name}]
    (shared_runs / "sweeps").mkdir(exist_ok=True)
    file = shared_runs / "sweeps" / "named-digits.json"
    file.write_text(json.dumps(plan | {"cells": cells}))
    torch.set_num_threads(2)
    try:
        out = tmp_path / "x.npz"
        command([str(shared_runs / "named" / "a" / "0"), "--num", "4", "--npz", str(out), "--device", "cpu"])
    finally:
        file.unlink()
    assert out.is_file() and torch.get_num_threads() == make_config().machine.threads == 1
