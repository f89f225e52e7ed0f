"""Balanced clusters, and the cluster cross-entropy against plain logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mirai_bench.regularizer.clusters import balanced_clusters
from mirai_bench.regularizer.iar import ClusteredCrossEntropy


def test_clusters_have_equal_sizes_and_hold_what_is_near():
    rng = np.random.default_rng(0)
    blobs = np.repeat(np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]), 4, 0) + rng.normal(0, 0.1, (12, 2))
    found = balanced_clusters(blobs, 3)
    assert [len(set(found[start : start + 4])) for start in (0, 4, 8)] == [1, 1, 1]
    assert sorted(np.bincount(found)) == [4, 4, 4]


@pytest.mark.parametrize(("codes", "clusters"), [(17, 4), (50, 7), (256, 16)])
def test_sizes_differ_by_one_at_most(codes, clusters):
    """A blob that every centre is far from is cut all the same."""
    vectors = np.random.default_rng(1).normal(size=(codes, 3)) ** 3
    sizes = np.bincount(balanced_clusters(vectors, clusters), minlength=clusters)
    assert sizes.sum() == codes and sizes.max() - sizes.min() <= 1
    assert (balanced_clusters(vectors, clusters) == balanced_clusters(vectors, clusters)).all()


def test_a_full_cluster_keeps_its_nearest_codes():
    """Two clusters of two: the point in the middle of the right three has to go to the left."""
    found = balanced_clusters(np.array([[0.0], [10.0], [8.0], [7.0]]), 2)
    assert found[1] == found[2] != found[0] == found[3]


def test_the_loss_of_two_clusters_by_hand():
    """P = (1/2, 1/4, 1/4) with clusters {0, 1} and {2}: the token costs log 4, its cluster log 4/3."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    losses = ClusteredCrossEntropy.apply(
        logits, torch.eye(3), torch.tensor([1]), torch.tensor([0, 0, 1]), torch.tensor(2.0), torch.float32
    )
    expected = [np.log(4) + 2 * np.log(4 / 3), np.log(4), np.log(4 / 3)]
    assert [loss.item() for loss in losses] == pytest.approx(expected)


def test_losses_and_gradients_are_those_of_plain_logits(monkeypatch):
    monkeypatch.setattr("mirai_bench.regularizer.iar.chunk_rows", lambda vocabulary, kind: 7)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, generator=generator, requires_grad=True)
    head = torch.randn(10, 6, generator=generator, requires_grad=True)
    targets = torch.randint(10, (20,), generator=generator)
    clusters = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    weight = torch.tensor(0.7)
    total, token, cluster = ClusteredCrossEntropy.apply(x, head, targets, clusters, weight, torch.float32)
    # Plain: the logit of a cluster is the logsumexp of those of its codes.
    logits = x @ head.T
    of_clusters = torch.stack([logits[:, clusters == number].logsumexp(1) for number in range(3)], 1)
    expected = (F.cross_entropy(logits, targets), F.cross_entropy(of_clusters, clusters[targets]))
    torch.testing.assert_close((token, cluster), expected)
    ours = torch.autograd.grad(3 * total, (x, head))
    plain = torch.autograd.grad(3 * (expected[0] + weight * expected[1]), (x, head))
    torch.testing.assert_close(ours, plain)
