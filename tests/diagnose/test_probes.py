"""Probes, on features that say as much as they were made to say."""

import math

import pytest
import torch

from mirai_bench.diagnose.probes import BITS, Examples, fit_probes, losses, minimise, standardised

V, D = 5, 8


def drawn(images: int, seed: int, strength: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Features (2, n, D), classes (2, n, 1) drawn from a known logistic model, and its loss in nats."""
    weight = torch.randn(V, D, generator=torch.Generator().manual_seed(0)) * strength
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, images, D, generator=generator)
    shares = (features @ weight.T).softmax(-1)
    classes = torch.multinomial(shares.flatten(0, 1), 1, generator=generator).view(2, images, 1)
    return features, classes, -shares.gather(2, classes).log().mean().item()


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_a_probe_comes_near_the_model_that_drew_the_classes(strength):
    features, classes, _ = drawn(1500, 1, strength)
    heldout, heldout_classes, best = drawn(1500, 2, strength)
    features, heldout = standardised(features, heldout, each=True)
    valid = torch.ones(2, 1, dtype=torch.bool)
    probe = fit_probes(Examples(features, classes, valid), V)
    found = losses(Examples(heldout, heldout_classes, valid), probe).sum().item() / 3000
    assert best - 0.01 < found < best + 0.02


def test_many_probes_are_those_that_each_would_be_alone():
    features, classes, _ = drawn(300, 1, 1.0)
    features, _ = standardised(features, features, each=True)
    noise = torch.randint(V, classes.shape, generator=torch.Generator().manual_seed(3))
    valid = torch.tensor([[True, True], [True, False]])  # the second has nothing to read at cell 1
    both = fit_probes(Examples(features, torch.cat([classes, noise], 2), valid), V)
    alone = fit_probes(Examples(features, noise, valid[:, 1:]), V)
    assert torch.allclose(both.weight[1], alone.weight[0], atol=1e-4)
    assert torch.allclose(both.bias[0, 1], alone.bias[0, 0], atol=1e-4)


def test_what_a_cell_says_by_its_position_is_in_the_bias():
    """Cell 0 has class 0 always, cell 1 any class: features add nothing, whatever they say."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.stack([torch.zeros(800).long(), torch.randint(V, (800,), generator=generator)])[..., None]
    features = torch.stack([torch.zeros(800, 1), torch.ones(800, 1)])  # which cell it is
    features = torch.cat([features, torch.randn(2, 800, 3, generator=generator)], -1)
    features, _ = standardised(features, features, each=True)
    valid = torch.ones(2, 1, dtype=torch.bool)
    examples = Examples(features, classes, valid)
    fit, rest = examples.images(torch.arange(400)), examples.images(torch.arange(400, 800))
    first, second = (losses(rest, fit_probes(fit, V))[:, 0] / 400 * BITS).tolist()
    assert first == pytest.approx(0, abs=0.02)
    assert second == pytest.approx(math.log2(V), abs=0.05)


def test_each_function_goes_to_its_own_minimum():
    minima = torch.tensor([[1.0, -2.0], [300.0, 0.5]])
    scales = torch.tensor([[1.0, 50.0], [0.01, 3.0]])

    def objective(point):
        return (scales * (point - minima) ** 2).sum(1), 2 * scales * (point - minima)

    # A first guess that is much too long for one of them.
    metric = torch.tensor([[5.0, 5.0], [1.0, 1.0]])
    found = minimise(objective, torch.zeros(2, 2), metric, torch.ones(2), 30)
    assert torch.allclose(found, minima, rtol=1e-3, atol=1e-3)
