"""Metrics of pairs of images against torch-fidelity's, a matrix of all distances, and by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from mirai_bench.evaluate import pairs
from mirai_bench.evaluate.pairs import compare_pairs, draw_subsets, within

CPU = torch.device("cpu")


def rng(seed=0):
    return np.random.default_rng(seed)


def measured(x, y, count=7, size=12):
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    subsets = draw_subsets(len(x), len(y), count, size, CPU)
    return compare_pairs(x, y, within(x, subsets.ours), within(y, subsets.theirs), subsets)


@pytest.mark.parametrize("block", [7, 1000])
@pytest.mark.parametrize("width", [3, 40])
def test_all_are_as_they_are_defined(monkeypatch, block, width):
    """In blocks that divide neither set, and in one."""
    monkeypatch.setattr(pairs, "BLOCK", block)
    x = rng(1).normal(size=(60, width)) + 0.3
    y = rng(2).normal(size=(45, width))
    found = measured(x, y)
    ours, theirs = torch.from_numpy(x), torch.from_numpy(y)
    kid = kid_features_to_metric(
        ours, theirs, kid_subsets=7, kid_subset_size=12, rng_seed=2020, verbose=False
    )
    assert found["kid"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-11)
    options = {"prc_neighborhood": 3, "prc_batch_size": 20, "save_cpu_ram": False, "verbose": False}
    prc = prc_features_to_metric(ours, theirs, **options)
    assert found["precision"] == pytest.approx(prc["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(prc["recall"], abs=1e-6)
    in_ball = cdist(y, x) <= np.sort(cdist(y, y), axis=1)[:, 5:6]
    assert found["density"] == pytest.approx(in_ball.sum() / (5 * len(x)))
    assert found["coverage"] == in_ball.any(1).mean()


def test_density_and_coverage_by_hand(monkeypatch):
    """On a line: reference 0, 1, 2, …, 9 with k = 1: each ball reaches its neighbour, one away."""
    monkeypatch.setattr(pairs, "DENSITY_NEIGHBOURS", 1)
    line = np.arange(10.0)[:, None]
    found = measured(np.array([[0.5], [0.6], [100.0], [200.0]]), line, size=4)
    assert found["density"] == pytest.approx(4 / 4)  # 0.5 and 0.6 lie in the balls of 0 and 1 each
    assert found["coverage"] == pytest.approx(2 / 10)


def test_alike_and_distant_sets():
    x = rng(16).normal(size=(500, 4))
    y = rng(17).normal(size=(500, 4))
    alike = measured(x, y)
    assert 0.85 < alike["density"] < 1.15 and alike["coverage"] > 0.9
    distant = measured(x + 100, y)
    assert [distant[name] for name in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="more than 5 images, found 5"):
        measured(x, y[:5], size=5)


def test_an_image_is_its_own_nearest_and_copies_lie_in_its_ball():
    x = rng(3).normal(size=(20, 2000)) + 1000
    of_x = within(torch.from_numpy(x), torch.zeros(20, 1, dtype=torch.float64))
    assert (of_x.nearest[:, 0] == 0).all() and (of_x.nearest.diff(dim=1) > 0).all()
    assert measured(x, x, size=5)["precision"] == 1
