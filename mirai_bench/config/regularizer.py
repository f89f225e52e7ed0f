"""The configuration of the regularizer: a rival of foresight that a run may have instead, or besides.

Each rival has a section of its own, with exactly its fields; `name` says which one is meant. What a
paper leaves open is a field, with the reason for its default beside it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mirai_bench.config.foresight import Layer
from mirai_bench.config.sections import Amount, Fraction01, Positive, PositiveAmount, Section


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


class IarConfig(Rival):
    """IAR's cluster loss (CVPR 2025): the cluster of the next token is to be predicted, too.

    The codes of the tokenizer are put into clusters of equal size by the distance of their vectors. The
    probability of a cluster is the sum over its codes, so there are no parameters and no teacher.
    Published for LlamaGen on ImageNet-256 (FID of B 5.14 or 4.72, depending on who quotes it).
    """

    name: Literal["iar"]
    """IAR's cluster cross-entropy."""
    weight: Amount = 1.0
    """Weight λ of the loss (published code: 1)."""
    clusters: Annotated[int, Field(ge=2, lt=65536)] | None = None
    """Number of clusters. By default the square root of the number of codes, which for LlamaGen's 16,384 \
is the published 128."""


class RearConfig(Rival):
    """reAR (ICLR 2026): noise in the context, and vectors of the tokenizer's codebook as targets.

    Each input token is replaced by a random code with a probability that is drawn for each image
    from 0 to a bound, which falls linearly to 0. Two MLPs map states to the vector of the current token
    (shallow) and of the next token (deep). Published for another tokenizer (1,024 codes, size S, 80
    epochs, no guidance): FID 21.32 without, 19.72 with both.
    """

    name: Literal["rear"]
    """reAR."""
    weight: Amount = 1.0
    """Weight λ of both losses (paper: 1). With 0 the noise alone is left."""
    noise_until: Fraction01 = 0.75
    """The progress at which the noise ends: the bound is 1 - progress / noise_until (paper: 3/4). With 0 \
there is no noise."""
    shallow: Layer | Literal[0] = 0  # the paper's index l = 0; its code counts the embedding as 0
    """The block whose states are mapped to the vector of the current token. 0 is the embedded input."""
    deep: Layer = "3/4"  # the best of 10, 15 and 20 of 20 blocks
    """The block whose states are mapped to the vector of the next token."""
    hidden: Positive | None = None
    """Hidden width of the two MLPs (paper: 2048). By default that of foresight's projectors, so that all \
heads of a profile are equally wide."""

    @property
    def layers(self) -> tuple[int | str, ...]:
        """Returns the blocks whose residual streams it reads."""
        return (self.deep,) if self.shallow == 0 else (self.shallow, self.deep)


RegularizerConfig = Annotated[
    NoRegularizer | DispersiveConfig | IarConfig | RearConfig,
    Field(discriminator="name"),
]
