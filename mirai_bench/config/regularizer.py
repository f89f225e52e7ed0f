"""The configuration of the regularizer: a rival of foresight that a run may have instead, or besides.

Each rival has a section of its own, with exactly its fields; `name` says which one is meant. What a
paper leaves open is a field, with the reason for its default beside it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mirai_bench.config.foresight import Layer
from mirai_bench.config.sections import Amount, PositiveAmount, Section


class Rival(Section):
    """What all regularizers have."""

    name: str
    """Which regularizer."""

    @property
    def layers(self) -> tuple[int | str, ...]:
        """Returns the blocks whose residual streams it reads."""
        return ()

    def group_of(self, batch_size: int) -> int | None:
        """Returns how many images of a batch are compared with each other, or None if none are."""
        return None

    def unfit(self, grid: tuple[int, int], views: int) -> str | None:
        """Returns why data with this grid and so many views cannot carry it, or None if they can."""
        return None


class NoRegularizer(Rival):
    """No regularizer: next-token prediction, and foresight if there is any."""

    name: Literal["none"] = "none"
    """No regularizer."""


class DispersiveConfig(Rival):
    """Dispersive loss (arXiv 2506.09027): the states of different images are pushed apart.

    It has no teacher and no target. Published for diffusion models only.
    """

    name: Literal["dispersive"]
    """The dispersive loss."""
    weight: Amount = 0.5
    """Weight λ of the loss (paper: 0.5)."""
    layer: Layer = "1/4"  # the paper finds every block good, and the first quarter best
    """The block whose residual stream is dispersed."""
    temperature: PositiveAmount = 0.5
    """Temperature τ of exp(-distance / τ) (paper: 0.5)."""
    distance: Literal["mean", "sum"] = "mean"
    """Whether the squared distance of two images is divided by its number of dimensions. The paper's \
formula does not, but its published code does: of a sum over thousands of dimensions the exponential \
is 0, and so is its gradient."""
    self_pairs: bool = True
    """Whether the pair of an image with itself counts, as in the published code. It bounds the loss from \
below; without it images are pushed apart without end."""
    group: Annotated[int, Field(ge=2, lt=2**31)] = 32  # what one of 8 processes has of a batch of 256
    """Number of images that are compared with each other; a smaller batch is one group. It makes the \
loss independent of the number of processes and micro-batches."""

    @property
    def layers(self) -> tuple[int | str, ...]:
        """Returns the blocks whose residual streams it reads."""
        return (self.layer,)

    def group_of(self, batch_size: int) -> int:
        """Returns how many images of a batch are compared with each other."""
        return min(self.group, batch_size)


RegularizerConfig = Annotated[NoRegularizer | DispersiveConfig, Field(discriminator="name")]
