"""The comparison with the official code; with a checkout of it (slow) also that the comparison
would notice a wrong field."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from mirai_bench.benchmark.__main__ import TOLERANCE, command
from mirai_bench.benchmark.peer import parity
from mirai_bench.benchmark.peer.checkout import function_of, load_peer, peer_packages
from mirai_bench.benchmark.peer.decoding import SAMPLING, distance_outside
from mirai_bench.benchmark.peer.pair import ParityOptions, ParityPair, Row, difference, largest
from mirai_bench.config.protocol import Protocol
from mirai_bench.utils.errors import UserError
from tests.support.paths import ROOT

CPU = torch.device("cpu")
SMALL = ["--size", "nano", "--vocabulary", "64", "--classes", "10", "--images", "2", "--k", "9"]


def test_differences_by_hand():
    row = difference("x", torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    assert (row.absolute, row.relative) == (1.0, 0.2)
    row = largest(
        "x", [(torch.tensor([1.0]), torch.tensor([1.5])), (torch.tensor([10.0]), torch.tensor([10.0]))]
    )
    assert (row.absolute, row.relative) == (0.5, 0.05)
    with pytest.raises(UserError, match="another version"):
        difference("logits", torch.zeros(2), torch.zeros(3))


def test_a_difference_that_is_nan_is_not_lost():
    nan = torch.tensor([float("nan")])
    row = largest("x", [(torch.ones(1), torch.ones(1)), (nan, torch.ones(1)), (torch.ones(1), torch.ones(1))])
    assert math.isnan(row.absolute) and math.isnan(row.relative)
    assert parity.differing([row, difference("y", torch.ones(1), torch.ones(1))], TOLERANCE) == ["x"]


def test_how_far_a_uniform_number_lies_outside_its_codes_interval():
    logits = torch.tensor([0.5, 0.25, 0.25]).log().repeat(1, 4, 1)  # intervals 0 … 0.5 … 0.75 … 1
    codes, uniform = torch.tensor([[0, 1, 0, 2]]), torch.tensor([[0.3, 0.6, 0.8, 0.7]], dtype=torch.float64)
    gaps = distance_outside(logits, codes, uniform, Protocol(name="test", num_samples=2))
    assert gaps[0].tolist() == pytest.approx([0, 0, 0.3, 0.05])


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no autoregressive/models/gpt\.py"):
        load_peer(tmp_path)


def test_one_function_is_taken_from_a_script_without_running_it(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import wandb_that_is_not_there\n@decorated\ndef double(x):\n    return scale * x\n")
    assert function_of(script, "double", {"scale": 2})(4) == 8
    with pytest.raises(UserError, match="has no function triple"):
        function_of(script, "triple", {})


def test_the_checkouts_packages_are_forgotten_again(tmp_path):
    import sys

    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "ema.py").write_text("WHO = 'peer'\n")
    mine = sys.modules["utils"] = type(sys)("utils")
    try:
        with peer_packages(tmp_path):
            from utils.ema import WHO
        assert WHO == "peer" and sys.modules["utils"] is mine and "utils.ema" not in sys.modules
    finally:
        del sys.modules["utils"]


def test_the_table_has_a_row_for_each_comparison():
    facts = {
        "peer": "Mirai",
        "peer_commit": None,
        "model": {"size": "B", "parameters": 111, "grid": [16, 16]},
    }
    facts |= {"vocabulary": 64, "images": 2, "heads": 3, "device": "cpu"}
    text = parity.report(facts, [difference("logits", torch.ones(1), torch.ones(1), "note")])
    assert "an unknown commit" in text and "| logits | 0.00e+00 | 0.00e+00 | note |" in text


@pytest.mark.parametrize("name", ["mirai", "llamagen"])
def test_the_committed_comparison_is_made_of_the_committed_file(name):
    path = ROOT / "reports" / "benchmarks" / f"parity_{name}.json"
    facts = json.loads(path.read_text())
    rows = [Row(**row) for row in facts["rows"]]
    assert parity.report(facts, rows) == path.with_suffix(".md").read_text()
    assert parity.differing(rows, TOLERANCE) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Mirai", "LlamaGen"])
def test_parity_with_the_official_code(name, tmp_path, capsys):
    """Needs checkouts in $MIRAI_BENCH_PEERS/Mirai and $MIRAI_BENCH_PEERS/LlamaGen."""
    path = Path(os.environ.get("MIRAI_BENCH_PEERS", "")) / name
    if not (path / "autoregressive").is_dir():
        pytest.skip(f"$MIRAI_BENCH_PEERS has no checkout {name}")
    assert command(["parity", "--peer", str(path), *SMALL, "--device", "cpu", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / f"parity_{name.lower()}.md").read_text() == table
    heads = [f"loss of head {k} ({kind})" for kind in "EI" for k in range(9)] if name == "Mirai" else []
    assert all(
        row in table for row in ["logits", "tapped hidden state", "EMA's movement after the step", *heads]
    )
    assert sum("codes, top-k" in line for line in table.splitlines()) == (
        1 if name == "Mirai" else len(SAMPLING)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "field", [{"layout": "grid_2d"}, {"pairing": "predicting", "class_token": False}, {"class_token": False}]
)
def test_a_field_that_is_not_the_official_one_shows(field, monkeypatch):
    """Needs a checkout in $MIRAI_BENCH_PEERS/Mirai."""
    path = Path(os.environ.get("MIRAI_BENCH_PEERS", "")) / "Mirai"
    if not (path / "autoregressive").is_dir():
        pytest.skip("$MIRAI_BENCH_PEERS has no checkout Mirai")
    from mirai_bench.config import official

    monkeypatch.setitem(official.OFFICIAL, "ema", official.OFFICIAL["ema"] | field)
    options = ParityOptions(CPU, "nano", 16, vocabulary=64, classes=10, images=2, k=9, cfg_scale=2.0, seed=0)
    peer = load_peer(path)
    rows = parity.compare_heads(ParityPair(options, peer), peer.mirai)
    apart = parity.differing(rows, TOLERANCE)
    assert apart and all("(E)" in name and "loss" in name for name in apart)
