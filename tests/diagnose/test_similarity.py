"""Similarity of representations, on representations whose similarity is known."""

from dataclasses import replace

import pytest
import torch

from mirai_bench.diagnose import run, similarity
from mirai_bench.diagnose.runs import baseline_of
from mirai_bench.diagnose.similarity import cknna, hsic, kernel, mutual_neighbours, unbiased_cka
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.files import write_json

N, D = 200, 64


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def test_rotated_scaled_and_shifted_representations_are_the_same():
    x = drawn(1)
    rotation = torch.linalg.qr(drawn(2)[:D])[0]
    for y in (x, 3 * x @ rotation + 5):
        for measure in (cknna, unbiased_cka, mutual_neighbours):
            assert measure(x, y) == pytest.approx(1, abs=1e-4)


def test_independent_representations_have_nothing_in_common():
    """In the mean over draws: the biased estimate would be 0.24."""
    pairs = [(drawn(2 * i), drawn(2 * i + 1)) for i in range(10)]
    assert sum(unbiased_cka(*pair) for pair in pairs) / 10 == pytest.approx(0, abs=0.01)
    # By chance 10 of 199 neighbours are the same.
    assert sum(cknna(*pair) for pair in pairs) / 10 == pytest.approx(0, abs=0.05)
    assert sum(mutual_neighbours(*pair) for pair in pairs) / 10 == pytest.approx(10 / (N - 1), abs=0.01)


def test_what_is_shared_in_part_lies_between():
    shared = drawn(1)
    values = [unbiased_cka(shared + a * drawn(2), shared + a * drawn(3)) for a in (0.3, 1.0, 3.0)]
    assert 0.95 > values[0] > values[1] > values[2] > 0
    # With equal parts of signal and noise the kernels' correlation is 1/4 (each shares half its variance).
    assert values[1] == pytest.approx(0.25, abs=0.05)


def test_hsic_is_its_definition():
    k, m = kernel(drawn(1)[:9], unit=False), kernel(drawn(2)[:9], unit=False)
    k0 = k - k.diag().diag()
    m0 = m - m.diag().diag()
    ones = torch.ones(9, dtype=torch.float64)
    expected = (
        (k0 @ m0).trace() + (ones @ k0 @ ones) * (ones @ m0 @ ones) / 56 - 2 * ones @ k0 @ m0 @ ones / 7
    )
    assert hsic(k, m).item() == pytest.approx(expected.item() / 54)


def test_equal_rows_are_all_neighbours():
    x = drawn(1)
    x[:20] = x[0]
    neighbours = similarity.nearest(kernel(x, unit=True))
    assert neighbours[:20, :20].sum() == 20 * 19
    assert not neighbours.diagonal().any()


def test_a_run_is_compared_with_its_baseline_at_the_same_layers(subject):
    twin = replace(subject, baseline=replace(subject))
    values = similarity.measure(twin).values
    for layer in range(1, subject.depth + 1):
        assert values[f"cka_baseline@{layer}"] == pytest.approx(1, abs=1e-4)
        assert 0 < values[f"cka_encoder@{layer}"] < 1
    assert values["cka_baseline"] == values[f"cka_baseline@{subject.middle}"]
    assert not any("teacher" in name for name in values)  # the EMA is what is looked at


def test_a_teacher_is_compared_at_the_cell_where_the_state_stands(subject, make_config):
    """Layer 1 of a frozen model, which here is the run itself, is layer 1 of the states."""
    foresight = subject.config.foresight.model_copy(update={"source": "frozen"})
    frozen = replace(subject, config=subject.config.model_copy(update={"foresight": foresight}))
    frozen.heldout_objective = replace(subject).objective  # its source is the EMA
    values = similarity.measure(frozen).values
    assert values["cka_teacher@1"] == pytest.approx(1, abs=1e-4)
    assert values["cka_teacher@3"] < 0.999


def test_the_baseline_is_that_of_the_sweep_and_seed(tmp_path, mirai_e):
    cells = [("arm", 1, "aa"), ("plain", 1, "bb"), ("arm", 2, "cc"), ("plain", 2, "dd"), ("arm", 3, "ee")]
    plan = {"axis": "a", "profile": "p", "question": "q", "baseline": "plain", "arms": ["arm", "plain"]}
    plan |= {"cells": [dict(zip(("arm", "seed", "fingerprint"), cell, strict=True)) for cell in cells]}
    (tmp_path / "sweeps").mkdir()
    write_json(tmp_path / "sweeps" / "a-p.json", plan)
    for name in ("aa", "bb", "cc", "dd"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    for name in ("aa", "bb", "cc"):
        RunFolder(tmp_path / name).mark_done(1, 1.0)
    found = {name: baseline_of(RunFolder(tmp_path / name)) for name in ("aa", "bb", "cc", "ee", "ff")}
    assert found == {"aa": RunFolder(tmp_path / "bb"), "bb": None, "cc": None, "ee": None, "ff": None}


def test_the_baseline_is_looked_at_after_the_same_step(subject, mirai_e, trained_run, monkeypatch):
    monkeypatch.setattr(run, "baseline_of", lambda folder: RunFolder(trained_run))
    step = subject.codes.steps_per_epoch(16)
    what = (subject.scope, subject.device, subject.codes)
    found = run.baseline_subject(RunFolder(mirai_e.run_path), step, *what)
    assert found is not None
    assert (found.config.foresight.level, found.snapshot.step) == ("none", step)
    assert run.baseline_subject(RunFolder(mirai_e.run_path), 2 * step, *what) is None  # it ended before
