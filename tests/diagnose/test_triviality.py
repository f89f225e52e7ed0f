"""Triviality, of targets that are made of a cell's own part and an image's own part."""

import math

import pytest
import torch
import torch.nn.functional as F

from mirai_bench.diagnose import absorption, triviality
from mirai_bench.diagnose.subject import NotMeasurable
from mirai_bench.diagnose.triviality import constant_cosines, examples, explained_by_cell, over_pairs
from tests.diagnose.conftest import subject_of

N, T, Z = 400, 6, 32


def targets(of_cell: float, of_image: float) -> torch.Tensor:
    """Targets (2N, T, Z): a part that is the cell's, and one that differs from image to image."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(T, Z, generator=generator)
    images = torch.randn(2 * N, T, Z, generator=generator)
    return of_cell * cells + of_image * images


@pytest.mark.parametrize("of_cell, of_image", [(1, 0.001), (1, 1), (0.001, 1)])
def test_the_share_of_the_cell_is_read_off(of_cell, of_image):
    both = targets(of_cell, of_image)
    found = explained_by_cell(both[:N], both[N:])
    # The cells are six draws, whose variance about their mean is 5/6.
    expected = of_cell**2 * 5 / 6 / (of_cell**2 * 5 / 6 + of_image**2)
    assert found == pytest.approx(expected, abs=0.05)


def test_the_best_constant_of_a_cell_is_found():
    same = targets(1, 0)
    assert constant_cosines(same[:N], same[N:]).tolist() == pytest.approx([1] * T)
    other = targets(0, 1)
    assert constant_cosines(other[:N], other[N:]).tolist() == pytest.approx([0] * T, abs=0.05)
    # ±1 along one axis by cell, √3 along one of two others by image: a cosine of 1/2 to the cell's.
    half = torch.zeros(2 * N, T, 3)
    half[..., 0] = 1
    half[::2, :, 1] = math.sqrt(3)
    half[1::2, :, 1] = -math.sqrt(3)
    assert constant_cosines(half[:N], half[N:]).tolist() == pytest.approx([0.5] * T, abs=1e-5)


def test_a_large_common_part_makes_a_target_trivial_and_centring_takes_it_away():
    """Position explains nothing here, yet a constant has nearly no loss: the targets are alike."""
    both = 10 + targets(0, 1)
    assert explained_by_cell(both[:N], both[N:]) == pytest.approx(0, abs=0.02)
    assert constant_cosines(both[:N], both[N:]).min() > 0.99
    centred = both - both.mean((0, 1))
    assert constant_cosines(centred[:N], centred[N:]).max() < 0.1


def test_heads_see_the_cells_of_their_pairs(subject):
    level = subject.objective.foresight
    number_of_target = torch.arange(64.0)
    means = over_pairs(number_of_target, level)
    for head in range(3):
        valid = level.valid[:, head]
        assert means[head] == pytest.approx(level.index[valid, head].float().mean().item())


def test_the_trained_loss_is_that_of_the_training_step(subject):
    finding = triviality.measure(subject)
    objective = subject.objective
    level = objective.foresight
    states = objective.model.trunk(subject.heldout.tokens, subject.heldout.labels, tap=level.tap)
    with torch.no_grad():
        expected = level(states, subject.heldout, subject.heldout.labels).item()
    assert finding.values["loss"] == pytest.approx(expected, abs=1e-4)
    removed = 1 - finding.values["loss"] / finding.values["constant"]
    assert finding.values["removed"] == pytest.approx(removed)
    assert 0 < finding.values["constant"] < finding.values["constant_center"]


def test_pooled_targets_are_those_of_the_training_step(make_config, shared_runs):
    from tests.support.small_run import train

    config = make_config(foresight={"level": "internal", "source": "ema", "k": 3, "pooled": True})
    train(config, config.run_path)
    subject = subject_of(config)
    objective = subject.objective
    level = objective.foresight
    states = objective.model.trunk(subject.heldout.tokens, subject.heldout.labels, tap=level.tap)
    with torch.no_grad():
        expected = level(states, subject.heldout, subject.heldout.labels).item()
    finding = triviality.measure(subject)
    assert finding.values["loss"] == pytest.approx(expected, abs=1e-4)
    assert finding.values["removed"] > 0, "the head knows more of the mean ahead than a constant does"
    assert absorption.measure(subject).values["head"] == pytest.approx(1 - expected, abs=1e-4)


def test_heads_at_the_output_are_compared_with_the_marginals_of_cells(make_config, shared_runs):
    from tests.support.small_run import train

    config = make_config(foresight={"level": "output", "layout": "raster_1d", "k": 3, "weight": 1.0})
    train(config, config.run_path)
    subject = subject_of(config)
    finding = triviality.measure(subject)
    objective = subject.objective
    states = objective.model.trunk(subject.heldout.tokens, subject.heldout.labels)
    with torch.no_grad():
        expected = objective.foresight(states, subject.heldout, subject.heldout.labels).item()
    assert finding.values["loss"] == pytest.approx(expected, rel=1e-4)
    tokens = subject.fit.tokens
    shares = (F.one_hot(tokens, 17).sum(0) + 0.5) / (len(tokens) + 0.5 * 17)  # (T, V), another smoothing
    by_cell = -shares.log().gather(1, subject.heldout.tokens.T).mean(1)
    assert finding.values["constant"] == pytest.approx(
        over_pairs(by_cell, objective.foresight).mean().item(), rel=0.05
    )
    assert 0 < finding.values["position"] < 1
    assert examples(tokens).valid.all()


def test_a_baseline_has_no_target(make_config, trained_run):
    with pytest.raises(NotMeasurable, match="nothing is foreseen"):
        triviality.measure(subject_of(make_config()))
