"""Statistics against closed forms, torch-fidelity's functions, and wrong versions of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from mirai_bench.evaluate import metrics
from mirai_bench.evaluate.metrics import (
    Gaussian,
    InceptionScore,
    Moments,
    frechet,
    frechet_at_infinity,
)
from tests.support.features import gaussian_of


def rng(seed=0):
    return np.random.default_rng(seed)


def features(n, d, seed):
    """Correlated, off-centre, each seed with its own covariance."""
    r = rng(seed)
    return r.normal(size=(n, d)) @ r.normal(size=(d, d)) / np.sqrt(d) + r.normal(size=d)


def random_cov(d, seed):
    root = rng(seed).normal(size=(d, d))
    return root @ root.T / d


def naive(a, b):
    """The definition, by a matrix square root of the product."""
    root = linalg.sqrtm(a.cov @ b.cov).real
    return ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root)


def by_features(x, y):
    """Valid at any rank: tr (Σ₁Σ₂)^½ is the nuclear norm of XᵀY's cross products, scaled."""
    cx = x - x.mean(0)
    cy = y - y.mean(0)
    cross = np.linalg.svd(cx @ cy.T, compute_uv=False).sum() / np.sqrt((len(x) - 1) * (len(y) - 1))
    trace = (cx**2).sum() / (len(x) - 1) + (cy**2).sum() / (len(y) - 1)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + trace - 2 * cross


# ---- Fréchet


def check_closed_forms(distance):
    """Checks known distances, and the definition for covariances that do not commute."""
    d = 12
    spread = np.linspace(0.1, 3, d)
    other = np.linspace(2, 0.5, d)
    mean = np.zeros(d)
    shift = np.full(d, 0.3)
    known = d * 0.09 + ((np.sqrt(spread) - np.sqrt(other)) ** 2).sum()
    assert distance(Gaussian(mean, np.diag(spread)), Gaussian(shift, np.diag(other))) == pytest.approx(
        known, rel=1e-9
    )
    turn = linalg.qr(rng(1).normal(size=(d, d)))[0]
    turned = (Gaussian(turn @ m, turn @ np.diag(s) @ turn.T) for m, s in ((mean, spread), (shift, other)))
    assert distance(*turned) == pytest.approx(known, rel=1e-9)
    a = Gaussian(mean, random_cov(d, 2))
    b = Gaussian(shift, random_cov(d, 3))
    assert distance(a, b) == pytest.approx(naive(a, b), rel=1e-8)


def check_below_full_rank(distance):
    """Fewer images than dimensions, the usual case of a small evaluation."""
    for n, m, d in ((20, 30, 64), (5, 200, 64), (64, 64, 64)):
        x = features(n, d, 4)
        y = features(m, d, 5)
        assert distance(gaussian_of(x), gaussian_of(y)) == pytest.approx(by_features(x, y), rel=1e-6)
    x = gaussian_of(features(10, 64, 6))
    assert 0 <= distance(x, x) < 1e-6 * np.trace(x.cov)


CHECKS = (check_closed_forms, check_below_full_rank)


def _without_sandwich(a, b):
    """Wrong where the covariances do not commute: Σ₁^½ Σ₂^½ instead of (Σ₁Σ₂)^½."""
    cross = np.trace(linalg.sqrtm(a.cov).real @ linalg.sqrtm(b.cov).real)
    return ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * cross


def _without_the_mean(a, b):
    return frechet(a._replace(mean=b.mean), b)


def _by_cholesky(a, b):
    """Right at full rank only: there is no Cholesky factor below it."""
    root = np.linalg.cholesky(b.cov)
    return (
        ((a.mean - b.mean) ** 2).sum()
        + np.trace(a.cov + b.cov)
        - 2 * np.sqrt(np.linalg.eigvalsh(root.T @ a.cov @ root)).sum()
    )


def _not_clamped(a, b):
    return frechet(a, b) - 1e-3


@pytest.mark.parametrize("check", CHECKS)
def test_frechet(check):
    check(frechet)


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (_without_sandwich, check_closed_forms),
        (_without_the_mean, check_closed_forms),
        (_by_cholesky, check_below_full_rank),
        (_not_clamped, check_below_full_rank),
    ],
)
def test_a_wrong_frechet_is_caught(wrong, check):
    with pytest.raises((AssertionError, np.linalg.LinAlgError)):
        check(wrong)


def test_cholesky_version_is_right_where_it_is_defined():
    check_closed_forms(_by_cholesky)


@pytest.mark.parametrize(("n", "d"), [(50, 2), (400, 16), (2000, 64), (500, 128)])
def test_frechet_is_torch_fidelitys(n, d):
    import torch
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    x = features(n, d, 7)
    y = features(n + 10, d, 8)
    statistics = [fid_features_to_statistics(torch.from_numpy(part)) for part in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet(gaussian_of(x), gaussian_of(y)) == pytest.approx(theirs, rel=1e-9)


def test_frechet_is_symmetric_and_takes_a_known_root():
    a = gaussian_of(features(100, 20, 9))
    b = gaussian_of(features(90, 20, 10))
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)
    assert frechet(a, b) == frechet(a, b, metrics.square_root(b.cov))
    assert frechet(a, a) < 1e-9


# ---- moments


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 6))
def test_moments_are_numpys_however_the_images_arrive(sizes, d):
    x = features(sum(sizes) + 2, d, 11) * 3 + 100
    moments = Moments(d)
    for part in np.split(x.astype(np.float32), np.cumsum(sizes)):
        moments.add(part)
    gaussian = moments.gaussian()
    x = x.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(gaussian.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.cov, np.cov(x, rowvar=False).reshape(d, d), rtol=1e-9, atol=1e-9)


def test_one_image_has_no_covariance():
    moments = Moments(3)
    moments.add(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="two images or more, found 1"):
        moments.gaussian()


# ---- extrapolation


def test_a_line_in_inverse_n_is_read_at_infinity():
    sizes = [100, 200, 400]
    line = metrics.line_in_inverse_n(sizes, [3 + 500 / n for n in sizes])
    assert line == pytest.approx((3, 500))


def test_extrapolation_removes_the_bias_of_few_samples():
    d = 16
    truth = Gaussian(np.zeros(d), np.eye(d))
    samples = rng(12).normal(size=(2000, d))
    biased = frechet(gaussian_of(samples), truth)
    extrapolated = frechet_at_infinity(samples, truth)
    assert biased > 0.03 and abs(extrapolated) < biased / 3
    assert extrapolated == frechet_at_infinity(samples, truth)


# ---- Inception Score


@pytest.mark.parametrize("n", [10, 997, 1000])
def test_inception_score_is_torch_fidelitys(n):
    import torch
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits = (rng(13).normal(size=(n, 30)) * 3).astype(np.float32)
    score = InceptionScore(n, 30)
    for part in np.array_split(logits, 7):
        score.add(part)
    theirs = isc_features_to_metric(torch.from_numpy(logits))[KEY_METRIC_ISC_MEAN]
    assert score.value() == pytest.approx(theirs, rel=1e-9)


def test_inception_score_of_known_predictions():
    sure = InceptionScore(1000, 10, splits=1)
    unsure = InceptionScore(1000, 10)
    sure.add(np.eye(10)[np.arange(1000) % 10] * 1e4)
    unsure.add(np.zeros((1000, 10)))
    assert sure.value() == pytest.approx(10) and unsure.value() == pytest.approx(1)


def test_inception_score_does_not_depend_on_an_order_by_class():
    """Splits in the order of the files would give each split one class, and a score of 1."""
    score = InceptionScore(1000, 10)
    score.add(np.eye(10)[np.arange(1000) // 100] * 1e4)
    assert score.value() > 9


def test_inception_score_needs_an_image_per_split():
    with pytest.raises(ValueError, match="10 images or more, found 9"):
        InceptionScore(9, 5)
