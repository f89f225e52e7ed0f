"""How much is looked at: numbers of images, and how far the foresight map reaches."""

from __future__ import annotations

from mirai_bench.config.sections import Positive, Section, Seed


class Scope(Section):
    """The protocol of all diagnostics. Its digest is in every record, and scopes are never mixed."""

    heldout_images: Positive = 500
    """Number of held-out images that everything is measured on, evenly spaced, or all if there are \
fewer."""
    fit_images: Positive = 1500
    """Number of training images that probes and regressions are fitted to, evenly spaced, or all."""
    reach: Positive = 3
    """Rows and columns that the foresight map looks in each direction."""
    gradient_batches: Positive = 16
    """Number of held-out batches, of the run's size, whose gradients are compared."""
    pictures: bool = False
    """Whether t-SNE colours are computed, which takes longest."""
    seed: Seed = 0
    """Seed of whatever is drawn."""


def full_scope(grid: tuple[int, int]) -> Scope:
    """Returns the scope of `--full`: the whole map, and t-SNE."""
    return Scope(reach=max(grid) - 1 or 1, pictures=True)
