"""The configuration of the regularizer: a rival of foresight that a run may have instead, or besides.

Each rival has a section of its own, with exactly its fields; `name` says which one is meant. What a
paper leaves open is a field, with the reason for its default beside it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from mirai_bench.config.foresight import Layer
from mirai_bench.config.sections import (
    Amount,
    Fraction01,
    Positive,
    PositiveAmount,
    Rate,
    Section,
)


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
        return max(2, min(self.group, batch_size))


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


class MtarConfig(Rival):
    """MTAR's head (ACM MM 2026): a head of two blocks predicts the token below, too.

    Only the head: MTAR's contrast of tokens and its dropping of tokens are left out. Published for
    LlamaGen-B on 100 classes of ImageNet, 50 epochs: FID-10k 21.96 without, 19.75 with it.
    """

    name: Literal["mtar"]
    """MTAR's head."""
    weight: Amount = 0.1
    """Weight λ of the head's cross-entropy (paper: 0.1)."""
    blocks: Annotated[int, Field(ge=0, le=8)] = 2
    """Number of transformer blocks of the head (paper: 2). With 0 it is linear, as foresight's level \
`output`: is it the head or the weight?"""

    def unfit(self, grid: tuple[int, int], views: int) -> str | None:
        """Returns why data with this grid cannot carry it, or None if they can."""
        return "but a grid of one row has no cell below" if grid[0] == 1 else None


class StArConfig(Rival):
    """ST-AR (NeurIPS 2025): a masked student follows its own EMA, and contrasts images.

    L = NTP + α · L_MIM + β/2 · (L_step + L_view). Attention of the student does not see a random
    part of the tokens. L_MIM is the cosine distance of the final states to those of the EMA, which sees
    everything. L_step and L_view are contrastive: the state at one position is to be found, among
    those of other images, by a state at another position, or in another view of the image.
    Published for LlamaGen-B on ImageNet-256: FID 4.09 against 5.46 (300 epochs, guided), and 26.58
    against 31.35 (50 epochs, unguided).
    """

    name: Literal["st-ar"]
    """ST-AR."""
    weight: Amount = 1.0
    """Weight λ of all three losses. With 0 the masked attention alone is left."""
    mask_ratio: Rate = 0.25
    """Share of the tokens that attention does not see, the same in all blocks (paper: 0.25)."""
    mim: Amount = 1.0
    """Weight α of L_MIM (paper: 1)."""
    step: Amount = 0.25
    """Weight of L_step. The paper says β = 0.5; that it multiplies half the sum is a guess."""
    view: Amount = 0.25
    """Weight of L_view. It needs data with two views or more."""
    layer: Layer = "1/2"
    """The block whose states are contrasted (paper: half of the depth)."""
    positions: Positive = 4
    """Number of random positions of an image that are contrasted (paper: 4)."""
    temperature: PositiveAmount = 0.2
    """Temperature τ of the contrast. The paper does not say; 0.2 is that of MoCo v2 and v3."""
    hidden: Positive | None = None
    """Hidden width of the student's projector, an MLP of three layers without batch norm, which would \
mix images. By default that of foresight's projectors."""
    group: Annotated[int, Field(ge=2, lt=2**31)] = 32  # what one of 8 processes has of a batch of 256
    """Number of images that are contrasted with each other; a smaller batch is one group. With `view` \
half of them are the second views of the other half, so that a step is as large as without."""

    @property
    def contrasts(self) -> bool:
        """Tells whether images are contrasted, so that there are a projector and groups."""
        return self.weight > 0 and (self.step > 0 or self.view > 0)

    @property
    def pairs_views(self) -> bool:
        """Tells whether half of a batch are second views of the other half."""
        return self.weight > 0 and self.view > 0

    @property
    def layers(self) -> tuple[int | str, ...]:
        """Returns the blocks whose residual streams it reads."""
        return (self.layer,)

    def group_of(self, batch_size: int) -> int | None:
        """Returns how many images of a batch are contrasted with each other, or None if none are."""
        if not self.contrasts:
            return None
        size = max(2, min(self.group, batch_size))
        return size - size % 2 if self.pairs_views else size

    def unfit(self, grid: tuple[int, int], views: int) -> str | None:
        """Returns why data with so many views cannot carry it, or None if they can."""
        if self.pairs_views and views < 2:
            return "whose view contrast needs a second view of each image, but data.views is center"
        return None


class NppConfig(Rival):
    """Next Patch Prediction (arXiv 2412.15321): the first part of training is on patches.

    The input of a patch is the mean of its tokens' embeddings, and its state predicts all tokens of the
    next patch with one distribution. Then training goes on as usual. It has no loss of its own and no
    parameters. Its authors restart the learning rate in each part: `patch: 1` is that schedule alone.
    Published for LlamaGen on ImageNet-256: FID of B 4.47, of L 2.76 (LlamaGen: 5.46, 3.81).
    """

    name: Literal["npp"]
    """Next patch prediction."""
    patch: Annotated[int, Field(ge=1, le=64)] = 2
    """Side of a patch in cells (paper: 2). With 1 there are no patches."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of training that is on patches (paper: epochs 0 to 149 of 300)."""
    restart_lr: bool = True
    """Whether the learning rate starts anew in each of the two parts, instead of following the recipe: \
linearly up in one epoch, constant, and in the last fifth linearly down to a tenth (published code)."""

    def unfit(self, grid: tuple[int, int], views: int) -> str | None:
        """Returns why data with this grid cannot carry it, or None if they can."""
        height, width = grid
        if height % self.patch or width % self.patch:
            return f"but patches of {self.patch}x{self.patch} cells do not tile the grid of {height}x{width}"
        return None


# The names of the built-in regularizers.
BUILTIN = ("none", "dispersive", "iar", "rear", "mtar", "st-ar", "npp")
# The sections of regularizers that plug-ins have registered, by name.
PLUGGED: dict[str, type[Rival]] = {}


def _plugged_or(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Returns the section of a plug-in if `value` names one, and else a built-in one."""
    if isinstance(value, tuple(PLUGGED.values())):
        return value
    name = value.get("name") if isinstance(value, dict) else None
    return PLUGGED[name].model_validate(value) if name in PLUGGED else handler(value)


RegularizerConfig = SerializeAsAny[
    Annotated[
        NoRegularizer | DispersiveConfig | IarConfig | RearConfig | MtarConfig | StArConfig | NppConfig,
        Field(discriminator="name"),
        WrapValidator(_plugged_or),
    ]
]
