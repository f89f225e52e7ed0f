"""Pretrained image encoders as foresight teachers: pixels become one feature per token cell.

The input size is chosen so that the encoder's own grid is the token grid. Patches of 14 pixels need
224 pixels for 16x16 tokens and 336 for 24x24; patches of 16 need 256 and 384.

Letters: B batch, T = H·W cells, P class and register tokens, Z feature width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.foresight.encoders.zoo import (
    PixelEntry,
    Weights,
    create_network,
    entry_of,
    find_weights,
    import_timm,
)
from mirai_bench.utils.errors import UserError


def stage_for(entry: PixelEntry, grid: int, reductions: list[int]) -> tuple[int, int]:
    """Returns the stage of a convolutional network, and the input size, that give the token grid.

    It is the deepest stage whose input is within half and twice the size of the training images.
    `reductions` holds the stride of each stage in pixels. Raises UserError if there is no such
    stage.
    """
    for stage in reversed(range(len(reductions))):
        size = reductions[stage] * grid
        if entry.trained_size <= 2 * size and size <= 2 * entry.trained_size:
            return stage, size
    tried = ", ".join(f"{stride} (input {stride * grid})" for stride in reductions)
    raise UserError(
        f"{entry.timm} has no stage for a {grid}x{grid} token grid: its strides are {tried}, and "
        f"inputs must be within half and twice the {entry.trained_size} pixels of its training: "
        "choose another encoder, image size or tokenizer"
    )


def with_prefix(cells: Tensor, prefix: int) -> Tensor:
    """Extends a mask over cells (T, T) to one over P prefix tokens and cells (P + T, P + T).

    Class and register tokens see only each other. Cells see them and their own cells. If prefix
    tokens saw all cells, they would carry later blocks to earlier ones within two layers.
    """
    mask = F.pad(cells, (prefix, 0, prefix, 0))
    mask[:, :prefix] = True
    return mask


class PixelEncoder:
    """A frozen image encoder: images (B, h, w, 3) uint8 become features (B, T, Z) float32.

    The features are a ViT's patch tokens, after its final norm or after one of its blocks, or the
    output of a convolutional stage. On a GPU they are computed under bfloat16 autocast, whatever the
    trainer's precision is.
    """

    def __init__(
        self,
        name: str,
        grid: tuple[int, int],
        device: torch.device,
        *,
        weights: Weights = None,
        assets: Path | None = None,
        layer: int | str | None = None,
        cells: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """`layer` is the block of a ViT that gives the features; None is the last one and its norm.

        `seed` is that of `random` weights.

        `cells` (T, T) bool cuts off the context of a ViT: it says which cells each cell sees.

        The cut is exact between patches. If the image is resized, the filter's border of two pixels
        still crosses it.

        Raises UserError if the encoder's grid cannot be the token grid, or if a convolutional
        network is asked for a context that is cut off, or for a block.
        """
        self.name = name
        self.grid = grid
        self.device = device
        self.entry = entry_of(name)
        if self.entry.patch is None and cells is not None:
            raise UserError(
                f"foresight.encoder.context is block-causal, but {name} is convolutional and has no "
                "attention to mask: choose a ViT"
            )
        if self.entry.patch is None and layer is not None:
            raise UserError(
                f"foresight.encoder.layer is {layer}, but {name} is convolutional: choose a ViT, or leave "
                "it out"
            )
        self.stage, self.size = self._stage_and_size()
        found = find_weights(name, self.entry, weights, assets)
        self.model = create_network(self.entry, self.size, found, seed)
        if layer is not None:
            self._cut(layer)
        self.model.to(device, memory_format=torch.channels_last)  # as permuted images have it
        self.mask: Tensor | None = None
        if cells is not None:
            self.mask = with_prefix(cells, self.model.num_prefix_tokens).to(device)
        mean, std = self.entry.mean_std
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.width = self._checked_width()

    def _stage_and_size(self) -> tuple[int, int]:
        """Returns the stage that gives the features, and the input size in pixels.

        The stage is 0 where there is no choice: for a ViT, and for a single layer.
        """
        cell = self.entry.patch or self.entry.stride  # pixels along its side
        if cell is not None:
            return 0, cell * self.grid[0]
        with torch.device("meta"):
            stages = import_timm().create_model(self.entry.timm).feature_info
        return stage_for(self.entry, self.grid[0], [stage["reduction"] for stage in stages])

    def _cut(self, layer: int | str) -> None:
        """Takes the later blocks and the final norm away. Raises UserError if there is no such block."""
        try:
            last = resolve_layer(layer, len(self.model.blocks))
        except ValueError as error:
            raise UserError(f"foresight.encoder.layer of {self.name}: {error}") from None
        self.model.blocks = self.model.blocks[:last]
        self.model.norm = nn.Identity()  # it was trained on the output of the last block

    def _checked_width(self) -> int:
        """Returns the width Z of the features.

        Raises UserError if there is not one feature per cell.
        """
        blank = torch.zeros(1, self.size, self.size, 3, dtype=torch.uint8, device=self.device)
        cells = self.grid[0] * self.grid[1]
        try:
            shape = tuple(self.features(blank).shape)
            found = str(shape)
        except (RuntimeError, AssertionError, TypeError) as error:
            shape = ()
            found = f"{type(error).__name__}: {error}"
        if len(shape) != 3 or shape[1] != cells:
            raise UserError(
                f"{self.name} does not give {cells} cells of features for an input of {self.size} "
                f"pixels ({found}): choose another encoder"
            )
        return shape[2]

    def prepare(self, images: Tensor) -> Tensor:
        """Returns images uint8 (B, h, w, 3) as input (B, 3, size, size), resized and normalised."""
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (self.size, self.size):
            antialias = self.entry.antialias and self.size < x.shape[-1]
            how = self.entry.interpolation
            x = F.interpolate(x, (self.size, self.size), mode=how, antialias=antialias)
        return (x - self.mean) / self.std

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Returns the features (B, T, Z) of images uint8 (B, h, w, 3)."""
        on_gpu = self.device.type == "cuda"
        with torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=on_gpu):
            x = self.prepare(images)
            if self.entry.patch is None:
                stages = [self.stage]
                maps = self.model.forward_intermediates(
                    x, indices=stages, intermediates_only=True, stop_early=True
                )
                return maps[0].flatten(2).transpose(1, 2).float()
            options = {} if self.mask is None else {"attn_mask": self.mask}
            tokens = self.model.forward_features(x, **options)
            return tokens[:, self.model.num_prefix_tokens :].float()

    def identity(self) -> dict[str, Any]:
        """Returns all that decides the features: architecture, preprocessing, mask and weights."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        mask = None
        if self.mask is not None:
            mask = hashlib.sha256(self.mask.cpu().numpy().tobytes()).hexdigest()
        return {
            "entry": self.entry.timm,
            "mean_std": self.entry.mean_std,
            "interpolation": self.entry.interpolation,
            "antialias": self.entry.antialias,
            "size": self.size,
            "stage": self.stage,
            "grid": list(self.grid),
            "mask": mask,
            "weights": weights.hexdigest(),
        }
