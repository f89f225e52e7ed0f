"""The copy check against cases whose answer is known."""

import numpy as np
import pytest
import torch

from mirai_bench.data.codes import images_of
from mirai_bench.evaluate import copies
from mirai_bench.evaluate.copies import CopyCheck, to_nearest
from mirai_bench.evaluate.extractors import open_extractor
from mirai_bench.evaluate.references import open_reference
from mirai_bench.results.frame import lower_is_better

CPU = torch.device("cpu")


def features(n, seed, d=16):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def check(training, unseen):
    return CopyCheck(training, unseen, CPU)


def test_copies_unseen_images_and_noise():
    training = features(1000, 0)
    found = check(training, features(1500, 1))
    assert found.share(training[::3]) == 1.0
    assert found.share(features(20_000, 2)) == pytest.approx(0.05, abs=0.015)
    assert found.share(10 * features(300, 3)) == 0.0
    half = np.concatenate([training[:200], 10 * features(200, 3)])
    assert found.share(half) == 0.5
    assert lower_is_better("copies")


def test_the_nearest_is_found_in_blocks(monkeypatch):
    images, training = features(50, 0), features(70, 1)
    expected = np.linalg.norm(images[:, None] - training, axis=2).min(1)
    np.testing.assert_allclose(to_nearest(images, training, CPU), expected, rtol=1e-5)
    monkeypatch.setattr(copies, "BLOCK_BYTES", 4 * 70 * 7)
    np.testing.assert_allclose(to_nearest(images.astype(np.float64), training, CPU), expected, rtol=1e-5)


def test_a_copy_far_from_the_origin_is_at_distance_zero():
    """Products in float32 would say sqrt(1e-7) of the norm."""
    training = features(100, 0) + 1000
    assert (to_nearest(training[:10], training, CPU) == 0).all()


def test_duplicates_among_the_splits_do_not_hide_copies():
    """A tenth of the held-out images are training images: without care the limit would be 0."""
    training = features(1000, 0)
    unseen = features(1000, 1)
    clean = check(training, unseen)
    with_duplicates = check(training, np.concatenate([unseen[:900], training[:100] * (1 + 1e-6)]))
    assert with_duplicates.limit == pytest.approx(clean.limit, rel=0.05)
    nothing_unseen = check(training, training[:100])
    assert nothing_unseen.limit == 0
    assert nothing_unseen.share(training) == 1 and nothing_unseen.share(unseen) == 0


def test_the_limit_needs_few_held_out_images(monkeypatch):
    found = check(features(500, 0), features(4001, 1))
    few = found.limit
    monkeypatch.setattr(copies, "UNSEEN_USED", 10_000)
    every = check(found.training, found.unseen).limit
    assert every != few and every == pytest.approx(few, rel=0.05)


def test_the_training_split_brings_its_check(make_config):
    """Its features are the reference's; the held-out images themselves are copies in 5 % of cases."""
    config = make_config()
    extractor = open_extractor(config, "digits", CPU)
    train = open_reference(config, "train", extractor)
    assert train.copies is not None and len(train.copies.training) == train.n == 1500
    np.testing.assert_array_equal(train.features, train.copies.training)
    heldout = np.concatenate([images for images, _ in images_of(config, "heldout")])
    assert train.copies.share(extractor(heldout)["pool"]) == pytest.approx(0.05, abs=0.01)
    assert open_reference(config, "heldout", extractor).copies is None
