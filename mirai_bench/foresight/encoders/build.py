"""Frozen bidirectional encoders for Mirai-I. Each encoder is a source, and one entry of ENCODERS.

Letters: B batch, T tokens, D width of the student, Z width of the features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mirai_bench.config.foresight import BlockCausal
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Batch
from mirai_bench.data.pixels import Pixels
from mirai_bench.foresight.context import Source, SourceContext
from mirai_bench.foresight.encoders.feature_cache import cached_features
from mirai_bench.foresight.encoders.masked_tokens import (
    MaskedTokens,
    load_or_train,
    training_seconds,
)
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.foresight.encoders.zoo import PIXEL_ENTRIES, entry_of, find_weights
from mirai_bench.utils.assets import assets_folder
from mirai_bench.utils.errors import unknown


def block_causal_mask(cells: int, block: int, device: torch.device) -> Tensor:
    """Returns a mask (T, T) bool: cell i sees cell j if j's block is i's own or an earlier one.

    A block is `block` cells in raster order.
    """
    index = torch.arange(cells, device=device) // block  # (T,), the block of each cell
    return index[:, None] >= index


def context_mask(config: RunConfig, device: torch.device) -> Tensor | None:
    """Returns the mask (T, T) bool of the cells that each cell sees, or None if it sees all."""
    context = config.foresight.encoder.context
    if not isinstance(context, BlockCausal):
        return None
    return block_causal_mask(config.num_tokens, context.block_causal, device)


class TrainedTokens:
    """The masked-token transformer that the project trains on the same codes, at its last block.

    With `context: {block_causal: N}` the context of the frozen encoder is cut off, although it was
    trained with the full context. This is the paper's diagnostic on DINOv2 (figure 2).
    """

    def __init__(self, context: SourceContext) -> None:
        self.model = load_or_train(context.config, context.codes, context.device)
        self.one_off_seconds = training_seconds(context.config)
        self.width = context.config.model.width  # Z = D: it is as wide as the student
        self.mask = context_mask(context.config, context.device)

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the features (B, T, D) of the batch's tokens."""
        return self.model.states(batch.tokens, self.mask)


class RandomTokens:
    """A control: the same kind of network with random weights.

    It sees the whole image but has learned nothing.
    """

    one_off_seconds = 0.0

    def __init__(self, context: SourceContext) -> None:
        # A gain of 1, so that the network does mix the cells, although it is not trained.
        generator = torch.Generator().manual_seed(context.config.foresight.teacher_seed)
        self.model = MaskedTokens(context.config).init_weights(generator, gain=1.0)
        self.model.requires_grad_(False).to(context.device)
        self.width = context.config.model.width

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the features (B, T, D) of the batch's tokens."""
        return self.model.states(batch.tokens)


class ImageFeatures:
    """The features of a pretrained image encoder, computed from the pixels of the same view."""

    one_off_seconds = 0.0  # its training is not known here
    needs_pixels = True

    def __init__(self, encoder: PixelEncoder, pixels: Pixels) -> None:
        self.encoder = encoder
        # It may read files, which no graph can hold. The compiler is imported here and not with the
        # module: that takes 1.5 s, which a command that trains nothing does without.
        self.pixels = torch.compiler.disable(pixels.__call__)
        self.width = encoder.width

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the features (B, T, Z) of the batch's images."""
        # Exactly the crops that the codes were made from, or the cells would not lie on each other.
        pixels = batch.pixels
        if pixels is None:
            pixels = self.pixels(batch.index, batch.view)
        return self.encoder.features(pixels)


def image_encoder(context: SourceContext) -> Source:
    """Builds a pretrained image encoder, or a reader of its cached features."""
    config = context.config
    settings = config.foresight.encoder
    encoder = PixelEncoder(
        settings.name,
        config.grid,
        context.device,
        weights=settings.weights,
        assets=assets_folder(config.machine.assets),
        layer=settings.layer,
        cells=context_mask(config, context.device),
        seed=config.foresight.teacher_seed,
    )
    # Features of a cut context are cached apart from those of the full one.
    if settings.cache:
        return cached_features(encoder, config, context.codes, context.device)
    return ImageFeatures(encoder, context.codes.pixels)


# All encoders of images are built alike. What is special about one is in its entry of the zoo.
ENCODERS: dict[str, Callable[[SourceContext], Source]] = {
    "masked_tokens": TrainedTokens,
    **dict.fromkeys(PIXEL_ENTRIES, image_encoder),
}


def check_encoder(config: RunConfig) -> None:
    """Raises UserError if the weights of a pretrained image encoder are not where they should be."""
    encoder = config.foresight.encoder
    if encoder.name in PIXEL_ENTRIES or encoder.name.startswith("timm:"):
        entry = entry_of(encoder.name)
        find_weights(encoder.name, entry, encoder.weights, assets_folder(config.machine.assets))


def build_encoder(context: SourceContext) -> Source:
    """Builds the encoder that the configuration names. Raises UserError for an unknown name."""
    name = context.config.foresight.encoder.name
    if name.startswith("timm:"):  # any model of timm, which therefore has no entry
        return image_encoder(context)
    if name not in ENCODERS:
        raise unknown("foresight encoder", name, [*ENCODERS, "timm:<model>"])
    return ENCODERS[name](context)
