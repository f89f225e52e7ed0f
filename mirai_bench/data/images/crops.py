"""Which pixels a view of an image is. Codes and pixels of a view both come through here, so they are of the same crop by construction.

An image first becomes one square *base* per crop range (ADM's centre crop), and a view is a square cut out of a base, mirrored or not.
Letters: B batch, S side of the base, s side of the view (data.image_size), both in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mirai_bench.config.run_config import Data
from mirai_bench.data.images.datasets import Dataset

VIEWS_PER_BASE = {"center": 1, "flip": 2, "ten_crop": 10}


def base_sizes(data: Data) -> tuple[int, ...]:
    """S of each base. LlamaGen's ten-crop rounds range x image_size down: 281 pixels for 1.1 x 256."""
    return (
        tuple(int(data.image_size * r) for r in data.crop_ranges)
        if data.views == "ten_crop"
        else (data.image_size,)
    )


def crop_rule(data: Data) -> str:
    """The rule in words, as the manifest of prepared codes states it."""
    sides = "+".join(map(str, base_sizes(data)))
    return f"{data.views}: ADM centre crop to {sides}" + (
        f", five crops to {data.image_size}" if data.views == "ten_crop" else ""
    )


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's: halve with a box filter while twice too large, bicubic to a shorter side of `size`, cut the centre → uint8 (size, size, 3)."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    if scale != 1:
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def cut(bases: Tensor, view: Tensor, size: int, views: str, which: Tensor | None = None) -> Tensor:
    """Bases uint8 (B, S, S, 3), view (B,) within the base → uint8 (B, s, s, 3). With `which` (B,), view i is of base which[i].

    center: 0; flip: 1 is the mirror image. ten_crop, in torchvision's order: top left, top right, bottom left, bottom right, centre;
    then the same five of the mirror image (so view 5 mirrors view 1).
    """
    side = bases.shape[1]
    spare, device = side - size, bases.device
    if views == "ten_crop":
        middle = round(spare / 2)
        tops = torch.tensor([0, 0, spare, spare, middle], device=device)
        lefts = torch.tensor([0, spare, 0, spare, middle], device=device)
        top, left, mirrored = tops[view % 5], lefts[view % 5], view >= 5
    else:
        top = left = torch.zeros_like(view)
        mirrored = view == 1
    steps = torch.arange(size, device=device)
    rows, columns = top[:, None] + steps, left[:, None] + steps  # (B, s)
    columns = torch.where(mirrored[:, None], side - 1 - columns, columns)
    which = torch.arange(len(bases), device=device) if which is None else which
    return bases[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def all_views(bases: Sequence[Tensor], data: Data) -> Tensor:
    """The bases of n images, uint8 (n, S, S, 3) for each crop range → uint8 (n, data.num_views, s, s, 3)."""
    count, n, device = VIEWS_PER_BASE[data.views], len(bases[0]), bases[0].device
    view, which = (
        torch.arange(count, device=device).repeat(n),
        torch.arange(n, device=device).repeat_interleave(count),
    )
    parts = [cut(base, view, data.image_size, data.views, which).unflatten(0, (n, count)) for base in bases]
    return torch.cat(parts, 1)


def read_bases(dataset: Dataset, rows: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Centre crops uint8 (len(rows), size, size, 3); raises what Dataset.read raises."""
    if dataset.images is not None and dataset.images.shape[1:3] == (size, size):
        return dataset.images[np.asarray(rows)]
    return np.stack([center_crop(dataset.read(int(row)), size) for row in rows])
