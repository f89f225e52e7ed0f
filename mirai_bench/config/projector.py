"""The configuration of foresight's projection heads, which are dropped after training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mirai_bench.config.sections import Positive, Section

# The transformer of the paper's table 9: its attention heads, and the ratio of its MLP.
ATTENTION_HEADS = 4
MLP_RATIO = 4
# Cells of a 3x3 window that come no later in raster order than its middle: itself, left, and above.
CAUSAL_CELLS = 5


class ProjectorConfig(Section):
    """The projector from a state (width D) to its target (width Z)."""

    kind: Literal["mlp", "transformer", "conv"] = "mlp"
    """What a projector is: an `mlp` (Linear, SiLU, …, Linear), the `transformer` block of the paper's \
table 9 with a causal mask and a linear layer, or iREPA's 3x3 `conv` on the grid, of which only the cells \
that come no later are left."""
    layers: Annotated[int, Field(ge=1, le=8)] = 3
    """`kind: mlp`: number of linear layers (paper: 3). 1 is a linear projector."""
    hidden: Positive = 2048
    """`kind: mlp`: width of the hidden layers (paper: 2048)."""
    shared_trunk: bool = False
    """`kind: mlp`: whether all K heads share every layer but the last one, instead of having K separate \
projectors."""

    @model_validator(mode="after")
    def _check(self) -> ProjectorConfig:
        if self.shared_trunk and self.kind != "mlp":
            raise ValueError(
                f"foresight.projector.shared_trunk is true with kind: {self.kind}, whose heads share "
                "nothing: write shared_trunk: false or kind: mlp"
            )
        return self

    @property
    def unused(self) -> set[str]:
        """Returns the fields that change no number, and that fingerprints therefore leave out."""
        # `kind` came later: fingerprints of runs before it have an MLP without a name.
        return {"kind"} if self.kind == "mlp" else {"layers", "hidden", "shared_trunk"}

    def shapes(self, heads: int, width: int, target_width: int) -> list[tuple[int, int, int]]:
        """Returns (copies, inputs, outputs) of each linear layer of the projectors of K heads.

        A layer has one copy per head, or a single one if it belongs to a shared trunk.
        """
        if self.kind == "transformer":
            hidden = MLP_RATIO * width
            block = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
            return [(heads, inputs, outputs) for inputs, outputs in [*block, (width, target_width)]]
        if self.kind == "conv":
            return [(heads, CAUSAL_CELLS * width, target_width)]
        widths = [width, *[self.hidden] * (self.layers - 1), target_width]  # D, hidden, …, Z
        copies = [1 if self.shared_trunk else heads] * (self.layers - 1) + [heads]
        return list(zip(copies, widths[:-1], widths[1:], strict=True))
