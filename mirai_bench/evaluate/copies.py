"""The copy check: do samples lie nearer to training images than unseen images do?

A model that repeats its training images scores well in every distance to them, and learns nothing
worth having. Letters: n training images, m others, d dimensions of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = NDArray[np.floating]

UNSEEN_SHARE = 0.05  # of unseen images count as copies by definition
UNSEEN_USED = 2_000  # held-out images at most, evenly spaced: they place the limit well enough
# Nearer than this, relative to the farthest held-out image, is the same image up to rounding.
SAME = 1e-4
BLOCK_BYTES = 256 * 2**20  # of one block of a distance matrix


@dataclass(frozen=True)
class CopyCheck:
    """Counts the samples that lie nearer to a training image than 95 % of unseen images do."""

    training: Features
    """Features (n, d) of the training images."""
    unseen: Features
    """Features (m, d) of held-out images, which no model has seen."""
    device: torch.device

    @cached_property
    def limit(self) -> float:
        """The distance to the nearest training image below which a sample counts as a copy.

        Held-out images that occur among the training images say nothing about unseen ones, and are
        left out. If all of them do, only exact copies count.
        """
        rows = np.arange(0, len(self.unseen), -(-len(self.unseen) // UNSEEN_USED))
        distances = to_nearest(self.unseen[rows], self.training, self.device)
        distances = distances[distances > SAME * distances.max()]
        return float(np.quantile(distances, UNSEEN_SHARE)) if len(distances) else 0.0

    def share(self, samples: Features) -> float:
        """Returns the share of samples (m, d) that are copies."""
        return float((to_nearest(samples, self.training, self.device) <= self.limit).mean())


@torch.inference_mode()
def to_nearest(images: Features, training: Features, device: torch.device) -> Features:
    """Returns the distance (m,) of each image to its nearest training image, in float32.

    The matrix of distances is computed in blocks and not kept.
    """
    theirs = torch.from_numpy(training).to(device, torch.float32)
    squares = theirs.square().sum(1)
    found: list[Tensor] = []
    step = max(1, BLOCK_BYTES // (4 * len(theirs)))
    for start in range(0, len(images), step):
        ours = torch.from_numpy(images[start : start + step]).to(device, torch.float32)
        # |a - b|² - |a|² has the same minimum. The distance itself is computed without the
        # products, whose rounding would move that of a copy away from 0.
        nearest = (squares - 2 * ours @ theirs.T).argmin(1)
        found.append(torch.linalg.vector_norm(ours - theirs[nearest], dim=1))
    return torch.cat(found).cpu().numpy()
