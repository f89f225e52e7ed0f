"""`init profile FILE --images FOLDER`: a commented profile for a folder of images, with sizes that fit it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Template
from typing import Any

from mirai_bench.config.load import SWEEPS
from mirai_bench.data.images.datasets import class_folders
from mirai_bench.data.images.decoding import UNREADABLE, read_image
from mirai_bench.data.images.listing import list_images
from mirai_bench.utils.errors import UserError

SIDES = (128, 64, 32, 16)  # pixels
DOWNSAMPLE = {128: 8, 64: 8, 32: 4, 16: 2}
LOOKED_AT = 100  # images whose size is read
PASSES = 20_000  # images that training sees, for its number of epochs
TOKENIZER_PASSES = 10_000  # and those of the tokenizer
HELDOUT_SHARE = 0.1
PROTOCOLS = {10_000: "own_10k", 2_000: "own_2k", 500: "own_500", 100: "own_100"}


def own_profile(images: Path, path: Path) -> tuple[str, list[str]]:
    """Returns the profile of a folder of images, to be written to `path`, and the commands that follow it.

    Raises UserError if the folder holds no images of 16 pixels or more in class folders.
    """
    facts = look_at(images)
    n = facts["images"]
    side = facts["image_size"]
    grid = side // DOWNSAMPLE[side]
    batch = min(64, max(8, power_of_two(n // 16)))
    epochs = min(60, max(4, PASSES // n))
    rounds = min(200, max(8, TOKENIZER_PASSES // n))  # epochs of the tokenizer
    fits = [name for number, name in PROTOCOLS.items() if facts["classes"] > 1 and number <= n]
    weights = path.with_name(f"{path.stem}_tokenizer.safetensors")
    sizes = f"--epochs {rounds} --batch-size {batch} --channels 32 --blocks 1"
    commands = [
        f"mirai-bench tokenizer train {path} --vgg none {sizes} --out {weights}",
        f"mirai-bench prepare {path}",
        f"mirai-bench sweep injection_level --profile {path}",
    ]
    values = facts | {
        "downsample": DOWNSAMPLE[side],
        "grid": grid,
        "vocabulary": min(1024, max(64, power_of_two(n * grid**2 // 32))),
        "weights": weights.as_posix(),
        "batch_size": batch,
        "epochs": epochs,
        "half": epochs // 2,
        "protocol": fits[0] if fits else "none",
        "folder": json.dumps(str(images.absolute())),
        "views": "flip",
    }
    values |= dict(zip(("tokenizer", "prepare", "sweep"), commands, strict=True))
    template = (SWEEPS / "templates" / "images.yaml").read_text(encoding="utf-8")
    return Template(template).substitute(values), commands


def look_at(folder: Path) -> dict[str, Any]:
    """Returns the name of the data, its number of classes and of training images, its size and its split."""
    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    has_splits = (folder / "train").is_dir()
    root = folder / "train" if has_splits else folder
    classes = class_folders(root)
    files = list_images(root, classes).files
    if not files:
        raise UserError(f"--images {folder} holds no images in class folders: write class/image into it")
    side = min(_side(file.path) for file in files[:: -(-len(files) // LOOKED_AT)])
    fitting = [size for size in SIDES if size <= side]
    if not fitting:
        raise UserError(f"--images {folder}: an image has {side} pixels along a side, fewer than {SIDES[-1]}")
    share = "  # Held-out images are those of the folder val."
    held = 0.0
    if not has_splits:
        share = f"  heldout_share: {HELDOUT_SHARE}           # of all images, chosen by their contents"
        held = 2 * HELDOUT_SHARE  # at most, whichever they are
    return {
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.resolve().name).lstrip("_.-")[:40] or "images",
        "classes": len(classes),
        "images": int(len(files) * (1 - held)) or 1,
        "image_size": fitting[0],
        "split": share,
    }


def _side(path: str) -> int:
    try:
        return min(read_image(path).size)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}): repair or remove it") from None


def power_of_two(number: int) -> int:
    """Returns the largest power of two that is not above a number, or 1."""
    return 1 << max(0, number.bit_length() - 1)
