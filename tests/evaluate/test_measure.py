"""Sampling for an evaluation: how many images at a time, and how long their memory is held."""

import pytest
import torch

from mirai_bench.config.model_config import ModelConfig
from mirai_bench.config.protocol import Protocol
from mirai_bench.evaluate import measure
from mirai_bench.evaluate.measure import UNIT, SampledImages, batch_bytes, sampling_batch
from mirai_bench.model.transformer import ARModel


class Codes:
    """A tokenizer whose images are the codes."""

    def decode(self, codes):
        return codes.to(torch.uint8)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(size="nano", depth=2, width=32, heads=4, kv_heads=2)
    return ARModel(config, vocabulary=10, classes=3, grid=(4, 4)).requires_grad_(False)


def protocol(num_samples=10, **fields):
    return Protocol(name="test", num_samples=num_samples, **fields)


def test_the_batch_is_what_fits(model):
    # Keys and values of two blocks, two heads of width 8 and 16 positions in float32, and the draws.
    per_row = 2 * 2 * 2 * 8 * 16 * 4 + 10 * 40
    assert sampling_batch(model, protocol(cfg_scale=1.0), 100 * per_row) == 100
    assert sampling_batch(model, protocol(cfg_scale=1.0), 100 * per_row - 1) == 99
    assert sampling_batch(model, protocol(cfg_scale=2.0), 100 * per_row) == 50
    assert sampling_batch(model, protocol(), 0) == 1
    assert sampling_batch(model, protocol(), 10**12) == UNIT


def test_a_batch_takes_half_of_what_is_free_on_a_gpu(monkeypatch):
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 15 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * gib)
    assert batch_bytes(torch.device("cuda", 1)) == 15 * gib
    assert batch_bytes(torch.device("cpu")) == gib


def test_batches_split_a_unit_equally(model, monkeypatch):
    size = lambda count, most: SampledImages(model, Codes(), protocol(count), 0, most).sampler.batch_size  # noqa: E731
    assert [size(50_000, 240), size(300, 240), size(300, None)] == [167, 150, 300]
    monkeypatch.setattr(measure, "sampling_batch", lambda *_: 260)
    assert size(50_000, None) == 250


def test_units_share_a_sampler_until_the_end_of_a_measurement(model, monkeypatch):
    monkeypatch.setattr(measure, "UNIT", 10)
    source = SampledImages(model, Codes(), protocol(20), 0, 5)
    seen = []
    whole = source.read

    def read(rows):
        found = whole(rows)
        seen.append(source.sampler.sampler)
        return found

    monkeypatch.setattr(source, "read", read)
    monkeypatch.setattr(measure, "resized", lambda images, side: images)
    assert measure.measure(source, None, None).metrics == {}
    assert len(seen) == 2 and seen[0] is seen[1] is not None
    assert source.sampler.sampler is None
