"""Which pixels a view of an image is.

Codes and pixels both come through here, so that the code and the pixels of a view agree.
An image first becomes one square *base* per crop range (ADM's centre crop), and a view is a square
cut out of a base, mirrored or not. Letters: B batch, S side of the base, s side of the view
(data.image_size), both in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mirai_bench.config.data_config import DataConfig
from mirai_bench.data.images.datasets import Dataset
from mirai_bench.data.images.decoding import MOST_PIXELS, UNREADABLE
from mirai_bench.utils.errors import UserError


def base_sizes(data: DataConfig) -> tuple[int, ...]:
    """Returns the side S of each base.

    LlamaGen's ten-crop rounds range x image_size down: 281 pixels for 1.1 x 256.
    """
    if data.views != "ten_crop":
        return (data.image_size,)
    return tuple(int(data.image_size * crop_range) for crop_range in data.crop_ranges)


def crop_rule(data: DataConfig) -> str:
    """Returns the rule in words, as the manifest of prepared codes states it."""
    sides = "+".join(map(str, base_sizes(data)))
    rule = f"{data.views}: ADM centre crop to {sides}"
    return f"{rule}, five crops to {data.image_size}" if data.views == "ten_crop" else rule


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Returns ADM's centre crop, uint8 (size, size, 3).

    The image is halved with a box filter while it is at least twice too large, then resized
    bicubically until its shorter side is `size`, and the centre is cut out. Raises ValueError for an
    image that is so thin that it would become too large on the way.
    """
    image = image.convert("RGB")
    if size * size * max(image.size) > MOST_PIXELS * min(image.size):
        raise ValueError(f"{image.width}x{image.height} pixels are too thin for a square of {size}")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    if scale != 1:
        resized = (round(image.width * scale), round(image.height * scale))
        image = image.resize(resized, Image.Resampling.BICUBIC)
    left = (image.width - size) // 2
    top = (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def center_view(data: DataConfig) -> int:
    """Returns the number of the view that is the centre of an image (of its first crop range)."""
    return 4 if data.views == "ten_crop" else 0


def cut(bases: Tensor, view: Tensor, size: int, views: str) -> Tensor:
    """Returns the views uint8 (B, s, s, 3) of bases uint8 (B, S, S, 3).

    `view` (B,) counts within the base.
    center: view 0. flip: view 0, and view 1, which is the mirror image. ten_crop, in torchvision's
    order: top left, top right, bottom left, bottom right, centre, and then the same five of the
    mirror image, so that view 5 mirrors view 1.
    """
    side = bases.shape[1]
    device = bases.device
    # 1. The upper left corner of each view, and whether the view is mirrored.
    if views == "ten_crop":
        spare = side - size
        middle = round(spare / 2)
        corner = view % 5
        centre = corner == 4
        top = (corner // 2 * spare).masked_fill(centre, middle)
        left = (corner % 2 * spare).masked_fill(centre, middle)
        mirrored = view >= 5
    else:
        top = torch.zeros_like(view)
        left = top
        mirrored = view == 1
    # 2. The rows and columns (B, s) of its pixels.
    steps = torch.arange(size, device=device)
    rows = top[:, None] + steps
    columns = left[:, None] + steps
    columns = torch.where(mirrored[:, None], side - 1 - columns, columns)
    # 3. The three indices broadcast to (B, s, s).
    image = torch.arange(len(bases), device=device)
    return bases[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def all_views(bases: Sequence[Tensor], data: DataConfig) -> Tensor:
    """Returns all views uint8 (n, R, s, s, 3) of n images.

    `bases` are their squares uint8 (n, S, S, 3), one tensor per crop range.
    """
    views = []
    for base in bases:
        for number in range(data.num_views // len(bases)):
            view = torch.full((len(base),), number, device=base.device)
            views.append(cut(base, view, data.image_size, data.views))
    return torch.stack(views, 1)


def read_bases(dataset: Dataset, rows: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Returns the centre crops uint8 (n, size, size, 3) of images.

    Raises UserError, which names the file, if one cannot be read.
    """
    if dataset.images is not None and dataset.images.shape[1:3] == (size, size):
        return dataset.images[np.asarray(rows)]
    crops = []
    for row in rows:
        try:
            crops.append(center_crop(dataset.read(int(row)), size))
        except UNREADABLE as error:
            raise UserError(
                f"{dataset.files[row]} cannot be read ({error}): repair or remove it, or prepare the codes "
                "first, which leaves it out"
            ) from None
    return np.stack(crops)
