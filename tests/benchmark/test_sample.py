"""The measurement of sampling next to LlamaGen's sampler."""

from types import ModuleType, SimpleNamespace

import pytest
import torch

from mirai_bench.benchmark import report, sample
from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.peer.checkout import Peer

CPU = torch.device("cpu")


def peer_with(generate):
    """A checkout whose model is a stand-in, and whose sampler is `generate`."""
    module = ModuleType("stand_in")
    module.Transformer, module.ModelArgs = lambda args: torch.nn.Linear(1, 1), SimpleNamespace
    return Peer("LlamaGen", "c0ffee", module, SimpleNamespace(generate=generate), None, None)


def row_of(generate):
    (row,) = sample.measure(Options(CPU, 2, 1, False, (peer_with(generate),)), ["small"], [2], [2.0])
    return row


def test_both_rates_and_the_peers_flags():
    calls = []

    def generate(model, labels, tokens, **options):
        tf32 = torch.backends.cuda.matmul.allow_tf32
        calls.append((model.training, labels.tolist(), tokens, options, tf32))

    row = row_of(generate)
    assert calls == [(False, [0, 1], 64, {"cfg_scale": 2.0}, True)] * 3, "a round to warm up, and two"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"]["median"])
    assert row["peer"]["images_per_second"] > row["images_per_second"], "it does nothing"
    assert row["compiled"] is False, "nothing is, on a CPU"
    assert row["peer"]["wall"]["n"] == 2 and "error" not in row["peer"]


def test_a_peer_that_fails_costs_only_its_own_figures(caplog):
    calls = []

    def generate(*_, **__):
        calls.append(1)
        raise RuntimeError("no kernel\nfor this")

    row = row_of(generate)
    assert len(calls) == 1 and row["status"] == "measured" and row["seconds"]["n"] == 2
    assert row["peer"]["error"] == "RuntimeError: no kernel"
    assert "LlamaGen's sampler failed: RuntimeError: no kernel" in caplog.text
    assert "— times LlamaGen's" in report.table([row])
