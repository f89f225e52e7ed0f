"""Next patch prediction. Letters: B batch, T = H·W tokens, p side of a patch, t = T / p² patches, D width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.regularizer import NppConfig
from mirai_bench.data.batch import Batch
from mirai_bench.foresight.context import SourceContext
from mirai_bench.model.rope import rope_table
from mirai_bench.model.transformer import ARModel
from mirai_bench.regularizer.regularizer import Moment, Prepared, Reading, Regularizer

DECAYING = 0.2  # last share of a part in which the learning rate falls
LAST = 0.1  # what it falls to, as a share of its peak


class Npp(Regularizer):
    """Training on patches first, with a learning rate that starts anew when tokens take over."""

    cells: Tensor
    """(t, p²) long, the cells of each patch, in raster order."""
    rope: Tensor
    """(t, d/2, 2), the rotations of the grid of patches."""

    def __init__(self, context: SourceContext, config: NppConfig) -> None:
        super().__init__()
        self.config = config
        run = context.config
        self.peak = run.train.lr
        self.epoch = 1 / run.train.epochs  # as a share of training
        cells = torch.from_numpy(patch_cells(run.grid, config.patch))
        height, width = (side // config.patch for side in run.grid)
        rope = rope_table(height, width, run.model.width // run.model.heads)[: len(cells)]
        self.register_buffer("cells", cells, persistent=False)
        self.register_buffer("rope", rope, persistent=False)

    def learning_rate(self, progress: float, step_size: float) -> float | None:
        """Returns the learning rate of a step, or None if it is that of the recipe."""
        if not self.config.restart_lr:
            return None
        share = self.config.share
        start, length = (0.0, share) if progress < share else (share, 1 - share)
        done = progress - start
        warmup = min(self.epoch, length / 2)  # a part may be as short as an epoch
        if done < warmup:
            return self.peak * min(1.0, (done + step_size) / warmup)
        falling = max(0.0, done / length - (1 - DECAYING)) / DECAYING  # 0 to 1
        return self.peak * (1 - (1 - LAST) * falling)

    def prepare(self, batch: Batch, moment: Moment) -> Prepared:
        """Returns the batch, and in the first part of training the tokens of its patches (B, t, p²)."""
        if self.config.patch == 1 or moment.progress >= self.config.share:
            return Prepared(batch)
        return Prepared(batch, (batch.tokens[:, self.cells],))

    def read(self, model: ARModel, prepared: Prepared, labels: Tensor, taps: tuple[int, ...]) -> Reading:
        """Returns the states of patches, (B, t, D): state s has consumed the patches before s."""
        if not prepared.extra:
            return super().read(model, prepared, labels, taps)
        (patches,) = prepared.extra
        of_class = model.cls_embedding.embedding_table(labels)[:, None]  # (B, 1, D)
        of_patches = model.tok_embeddings(patches[:, :-1]).mean(2)  # (B, t-1, D)
        x = torch.cat([of_class, of_patches], 1)
        return Reading(*model.run(x, taps=taps, rope=self.rope, dropout=True))

    def targets(self, prepared: Prepared) -> Tensor:
        """Returns the tokens (B, T) of the cells, or all tokens (B, t, p²) of each patch."""
        return prepared.extra[0] if prepared.extra else prepared.batch.tokens


def patch_cells(grid: tuple[int, int], side: int) -> np.ndarray:
    """Returns the cells int64 (t, side²) of each patch. Patches and their cells are in raster order."""
    height, width = grid
    cells = np.arange(height * width).reshape(height // side, side, width // side, side)
    return cells.transpose(0, 2, 1, 3).reshape(-1, side**2)
