"""Pretrained image encoders as foresight teachers: pixels of a view → one feature a token cell.

The input size is chosen so that the encoder's own grid is the token grid: patches of 14 pixels see 224 pixels for 16x16 tokens, 336 for
24x24; patches of 16 see 256 and 384. Letters: B batch, T = H·W cells, P class and register tokens, Z feature width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.foresight.encoders.zoo import PixelEntry, Weights, create_network, entry_of, find_weights, import_timm
from mirai_bench.utils.errors import UserError


def stage_for(entry: PixelEntry, grid: int, reductions: list[int]) -> tuple[int, int]:
    """(stage, input size): the deepest stage that has the token grid on an input of half to twice the size it was trained at."""
    for stage in reversed(range(len(reductions))):
        size = reductions[stage] * grid
        if entry.trained_size <= 2 * size and size <= 2 * entry.trained_size:
            return stage, size
    tried = ", ".join(f"{r} (input {r * grid})" for r in reductions)
    raise UserError(
        f"{entry.timm} has no stage for a {grid}x{grid} token grid: its strides are {tried}, and inputs must be within half and twice "
        f"the {entry.trained_size} pixels of its training: choose another encoder, image size or tokenizer"
    )


def with_prefix(cells: Tensor, prefix: int) -> Tensor:
    """Mask over cells (T, T) → over P prefix tokens and cells (P + T, P + T): class and register tokens see only each other, cells see
    them and their own cells. (Prefix tokens that saw all cells would hand later blocks to earlier ones one layer on.)"""
    mask = F.pad(cells, (prefix, 0, prefix, 0))
    mask[:, :prefix] = True
    return mask


class PixelEncoder:
    """(B, h, w, 3) uint8 → (B, T, Z) float32, frozen: a ViT's patch tokens after its final norm, or a convolutional stage's output.

    In bfloat16 autocast on CUDA, whatever the trainer's precision. `cells` (T, T) bool cuts a ViT's context: the cut is exact between
    patches; where the image is resized, the filter's border of two pixels still crosses it. Raises UserError where the encoder's grid
    cannot be the token grid, and where a convolutional network is asked for a cut context.
    """

    def __init__(
        self,
        name: str,
        grid: tuple[int, int],
        device: torch.device,
        *,
        weights: Weights = None,
        assets: Path | None = None,
        cells: Tensor | None = None,
    ) -> None:
        import_timm()
        self.name, self.grid, self.device = name, grid, device
        self.entry = entry = entry_of(name)
        if entry.patch is None and cells is not None:
            raise UserError(
                f"foresight.encoder.context is block-causal, but {name} is convolutional and has no attention to mask: choose a ViT"
            )
        self.size, self.stage = (entry.patch or 0) * grid[0], 0
        if entry.patch is None:
            with torch.device("meta"):
                reductions = [
                    stage["reduction"] for stage in import_timm().create_model(entry.timm).feature_info
                ]
            self.stage, self.size = stage_for(entry, grid[0], reductions)
        self.model = create_network(entry, self.size, find_weights(name, entry, weights, assets))
        self.model.to(device, memory_format=torch.channels_last)  # as the images are, once permuted
        self.mask = None if cells is None else with_prefix(cells, self.model.num_prefix_tokens).to(device)
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in entry.mean_std
        )
        self.width = self._checked_width()

    def _checked_width(self) -> int:
        blank = torch.zeros(1, self.size, self.size, 3, dtype=torch.uint8, device=self.device)
        try:
            found = tuple(self.features(blank).shape)
        except (RuntimeError, AssertionError, TypeError) as error:
            found = f"{type(error).__name__}: {error}"
        cells = self.grid[0] * self.grid[1]
        if isinstance(found, str) or len(found) != 3 or found[1] != cells:
            raise UserError(
                f"{self.name} does not give {cells} cells of features for an input of {self.size} pixels ({found}): choose another encoder"
            )
        return found[2]

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, h, w, 3) → float (B, 3, size, size), resized and normalised."""
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (self.size, self.size):
            smaller = self.size < x.shape[-1]
            x = F.interpolate(
                x,
                (self.size, self.size),
                mode=self.entry.interpolation,
                antialias=self.entry.antialias and smaller,
            )
        return (x - self.mean) / self.std

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=cuda):
            x = self.prepare(images)
            if self.entry.patch is None:
                maps = self.model.forward_intermediates(
                    x, indices=[self.stage], intermediates_only=True, stop_early=True
                )[0]
                return maps.flatten(2).transpose(1, 2).float()
            options = {} if self.mask is None else {"attn_mask": self.mask}
            return self.model.forward_features(x, **options)[:, self.model.num_prefix_tokens :].float()

    def identity(self) -> dict[str, Any]:
        """All that decides the features: architecture and preprocessing, input size, mask, and the weights themselves."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        mask = None if self.mask is None else hashlib.sha256(self.mask.cpu().numpy().tobytes()).hexdigest()
        facts = {
            "entry": self.entry.timm,
            "mean_std": self.entry.mean_std,
            "interpolation": self.entry.interpolation,
        }
        facts |= {
            "antialias": self.entry.antialias,
            "size": self.size,
            "stage": self.stage,
            "grid": list(self.grid),
        }
        return facts | {"mask": mask, "weights": weights.hexdigest()}
