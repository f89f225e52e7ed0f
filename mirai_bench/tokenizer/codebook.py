"""The codebook of vq_small in training: moving averages, and the rebirth of dead codes.

Letters: n = B·H·W rows of a batch; Z code width; V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mirai_bench.data.tokenizers.vq_small import SmallVQ
from mirai_bench.tokenizer.recipe import Recipe


class Codebook:
    """The moving averages behind SmallVQ.codebook: code v is m_v / N_v (arXiv 1711.00937, appendix A.1).

    m_v is the moving sum of the rows that chose code v, and N_v their moving number. Codes of unit
    length are m_v / |m_v|.
    """

    def __init__(self, model: SmallVQ, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.counts = torch.zeros(len(model.codebook), device=model.codebook.device)  # N (V,)
        self.sums = torch.zeros_like(model.codebook)  # m (V, Z)

    def start(self, rows: Tensor, generator: torch.Generator) -> None:
        """Sets the codes to rows (n, Z) of the first batch."""
        chosen = torch.randint(len(rows), (len(self.counts),), generator=generator)
        self.sums = rows[chosen.to(rows.device)].clone()
        self.counts.fill_(1.0)
        self.model.codebook.copy_(self.sums)

    def update(self, rows: Tensor, codes: Tensor) -> None:
        """Moves the codes towards the rows (n, Z) that have chosen them, `codes` (n,)."""
        # N_v ← γ N_v + (1 - γ) n_v, and m_v ← γ m_v + (1 - γ) Σ rows, with γ the decay.
        decay = self.recipe.codebook_decay
        # Counts n (V,) and sums (V, Z) of this batch. A bincount would wait for the device.
        counts = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(rows[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        if self.model.normalised:
            self.model.codebook.copy_(F.normalize(self.sums, dim=1))
        else:
            self.model.codebook.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])

    def revive(self, rows: Tensor, generator: torch.Generator) -> int:
        """Replaces dead codes by rows (n, Z) of this batch, with an equal share as their count.

        Returns how many there were.
        """
        # A code that no row chooses gets no update, and would never be chosen again.
        share = len(rows) / len(self.counts)
        dead = (self.counts < self.recipe.dead_below * share).nonzero()[:, 0]
        chosen = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
        self.counts[dead] = share
        self.sums[dead] = rows[chosen] * share
        self.model.codebook[dead] = rows[chosen]
        return len(dead)
