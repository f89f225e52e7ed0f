"""The foresight loss as a module for a trainer of one's own. Letters: B batch, T states, D and Z widths."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mirai_bench.config.checking import checked
from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.foresight.level import Alignment
from mirai_bench.foresight.loss import reduce_heads
from mirai_bench.utils.errors import UserError


class ForesightLoss(nn.Module):
    """Aligns hidden states of a causal image generator with features of later cells (arXiv 2601.14671).

    The five lines in a trainer, here with the paper's Mirai-E, whose teacher is the model's own EMA:

        foresight = ForesightLoss(width=768, grid=(16, 16), k=3).to(device)
        optimizer = AdamW([*model.parameters(), *foresight.parameters()], lr=1e-4)
        ...
        with torch.no_grad():
            features = ema.states_after_block_8(tokens, labels)            # (B, T, D)
        loss = next_token_loss + 2.0 * foresight(model.states_after_block_8(...), features)

    The sequence is LlamaGen's: T = H·W states, of which state 0 has read the class and state s the first s
    tokens, in raster order. The projectors are initialised, as a function of the seed. They are trained with
    the model, and dropped with this module after training.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int],
        *,
        source_width: int | None = None,
        explicit: bool = True,
        layout: str = "grid_2d",
        k: int = 3,
        own_cell: bool = True,
        pairing: Literal["consumed", "predicting"] = "consumed",
        class_token: bool = False,
        loss: Literal["cosine", "smooth_l1"] = "cosine",
        target_norm: Literal["none", "layer_norm", "center", "z_score"] = "none",
        pooled: bool = False,
        reduce: Literal["mean", "sum"] = "mean",
        projector: Literal["mlp", "transformer", "conv"] = "mlp",
        projector_layers: int = 3,
        projector_hidden: int = 2048,
        shared_trunk: bool = False,
        seed: int = 0,
    ) -> None:
        """Makes the pairs of states and features, and the projectors.

        Args:
            width: width D of the hidden states.
            grid: height and width of the token grid.
            source_width: width Z of the features. By default D.
            explicit: whether the features are states of a causal model over the same inputs (Mirai-E), so
                that feature s is state s; otherwise feature j is that of cell j, as a bidirectional encoder
                gives it (Mirai-I).
            layout: which cells a state looks at: `grid_2d`, `raster_1d`, `grid_2d_flat`, or a plug-in's.
            k: number of cells K, the nearest first.
            own_cell: whether the state's own cell is the first of them.
            pairing: whether cell i belongs to the state that has consumed it, or to the one that is about to
                predict it.
            class_token: whether the state of the class is aligned with that of the source, too.
            loss: how a projected state is compared with its feature.
            target_norm: what is done to the features before.
            pooled: whether one head aims at the mean of the K cells, instead of one head at each.
            reduce: how the heads are combined: the paper's mean, or the official code's sum.
            projector: what projects a state: an MLP, a causal transformer block, or a causal convolution.
            projector_layers: number of linear layers of an MLP.
            projector_hidden: width of its hidden layers.
            shared_trunk: whether the MLPs of the heads share all layers but the last one.
            seed: seed of the projectors.

        Raises:
            UserError: a value is unknown, or does not fit the others.
        """
        super().__init__()
        # 1. What no configuration holds, or as another type.
        try:
            rows, columns = grid
        except (TypeError, ValueError):
            form = "write its height and width, such as (16, 16)"
            raise UserError(f"ForesightLoss: grid is {grid!r}: {form}") from None
        rows = _whole("grid[0]", rows)
        columns = _whole("grid[1]", columns)
        self.width = _whole("width", width)
        self.source_width = self.width if source_width is None else _whole("source_width", source_width)
        k = _whole("k", k)
        seed = _whole("seed", seed, least=0)
        # 2. The others.
        fields = {
            "level": "internal",
            "source": "ema" if explicit else "encoder",
            "layout": layout,
            "k": k,
            "own_cell": own_cell,
            "pairing": pairing,
            "class_token": class_token,
            "loss": loss,
            "target_norm": target_norm,
            "pooled": pooled,
            "reduce": reduce,
            "projector": {
                "kind": projector,
                "layers": projector_layers,
                "hidden": projector_hidden,
                "shared_trunk": shared_trunk,
            },
        }
        self.config = checked(ForesightConfig, fields, "ForesightLoss")
        self.cells = rows * columns
        if k + (not self.config.own_cell) > self.cells:
            raise UserError(f"ForesightLoss: k is {k}, but a grid of {rows}x{columns} has {self.cells} cells")
        self.alignment = Alignment(self.config, (rows, columns), self.width, self.source_width)
        self.alignment.init_weights(torch.Generator().manual_seed(seed))

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Returns the loss of states (B, T, D) and features (B, T, Z), a scalar before λ.

        No gradient flows into the features. Raises UserError if a shape is another one, with T = H·W.
        """
        # Features of one image would be broadcast to all of them.
        for name, states, width in (
            ("hidden", hidden, self.width),
            ("features", features, self.source_width),
        ):
            needed = (*hidden.shape[:1], self.cells, width)
            if states.shape != needed:
                raise UserError(
                    f"ForesightLoss: {name} has the shape {tuple(states.shape)}: write {needed}, for each "
                    "image of hidden one state for the class and one for each token but the last"
                )
        losses = self.alignment.align(hidden, features)
        return reduce_heads(losses, self.alignment.valid, self.config.reduce)


def _whole(name: str, value: Any, least: int = 1) -> int:
    """Returns a whole number, also NumPy's. Raises UserError if it is none, or out of range."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) < 2**31:
        raise UserError(f"ForesightLoss: {name} is {value!r}: write a whole number, {least} or more")
    return int(value)
