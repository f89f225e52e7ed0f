"""`init profile FILE --images FOLDER`: a commented profile for a folder of images, with sizes that fit it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

from mirai_bench.config.load import SWEEPS
from mirai_bench.config.machine_config import MachineConfig
from mirai_bench.config.sections import NAME
from mirai_bench.data.images.datasets import open_folder, split_root
from mirai_bench.data.images.decoding import UNREADABLE, read_image
from mirai_bench.utils.errors import UserError

SIDES = (128, 64, 32, 16)  # pixels
DOWNSAMPLE = {128: 8, 64: 8, 32: 4, 16: 2}
LOOKED_AT = 100  # images whose size is read
PASSES = 20_000  # images that training sees, for its number of epochs
TOKENIZER_PASSES = 10_000  # and those of the tokenizer
LEAST_BATCH = 8  # images, of which training needs as many
HELDOUT_SHARE = 0.1
NO_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # what a line of YAML cannot hold
PROTOCOLS = {10_000: "own_10k", 2_000: "own_2k", 500: "own_500", 100: "own_100"}


def own_profile(images: Path, path: Path) -> tuple[str, list[str]]:
    """Returns the profile of a folder of images, to be written to `path`, and the commands that follow it.

    Raises UserError if the folder holds too few images of 16 pixels or more in class folders, or if one of
    the commands could not read the file by its name.
    """
    if not re.fullmatch(NAME, path.stem):
        better = path.with_stem(plain(path.stem) or "my_images")
        raise UserError(
            f"{path}: {path.stem!r} is no name for a profile, which files are named by: write {better}"
        )
    if NO_LINE.search(f"{path}{images.absolute()}"):
        raise UserError(f"{str(path)!r} and --images {str(images)!r}: rename what has a control character")
    facts = look_at(images)
    n = facts["images"]
    side = facts["image_size"]
    grid = side // DOWNSAMPLE[side]
    batch = min(64, max(LEAST_BATCH, power_of_two(n // 16)))
    epochs = min(60, max(4, PASSES // n))
    rounds = min(200, max(8, TOKENIZER_PASSES // n))  # epochs of the tokenizer
    fits = [name for number, name in PROTOCOLS.items() if facts["classes"] > 1 and number <= n]
    weights = path.with_name(f"{path.stem}_tokenizer.safetensors")
    sizes = f"--epochs {rounds} --batch-size {batch} --channels 32 --blocks 1"
    file = shlex.quote(str(path))
    commands = [
        f"mirai-bench tokenizer train {file} --vgg none {sizes} --out {shlex.quote(str(weights))}",
        f"mirai-bench prepare {file}",
        f"mirai-bench sweep injection_level --profile {file}",
    ]
    values = facts | {
        "downsample": DOWNSAMPLE[side],
        "grid": grid,
        "vocabulary": min(1024, max(64, power_of_two(n * grid**2 // 32))),
        "weights": quoted(weights.as_posix()),
        "batch_size": batch,
        "epochs": epochs,
        "half": epochs // 2,
        "protocol": fits[0] if fits else "none",
        "folder": quoted(str(images.absolute())),
        "views": "flip",
    }
    values |= dict(zip(("tokenizer", "prepare", "sweep"), commands, strict=True))
    template = (SWEEPS / "templates" / "images.yaml").read_text(encoding="utf-8")
    return Template(template).substitute(values), commands


def look_at(folder: Path) -> dict[str, Any]:
    """Returns the name of the data, its number of classes and of training images, its size and its split."""
    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    name = plain(folder.resolve().name)[:40] or "images"
    # 1. Its splits, as the commands will find them.
    share = HELDOUT_SHARE if split_root(folder, "heldout") is None else None
    runs = MachineConfig().runs
    training = open_folder(folder.absolute(), "train", name, runs, share)
    if len(training) < LEAST_BATCH:
        raise UserError(
            f"--images {folder} has {len(training)} images to train on: add some, {LEAST_BATCH} are needed, "
            "and others to hold out"
        )
    heldout = open_folder(folder.absolute(), "heldout", name, runs, share)
    split = "  # Held-out images are those of the folder val."
    if share is not None:
        split = f"  heldout_share: {share}           # of the images, chosen by their contents"
    # 2. Its pixels.
    files = training.files + heldout.files
    side = min(map(_side, files[:: -(-len(files) // LOOKED_AT)]))
    fitting = [size for size in SIDES if size <= side]
    if not fitting:
        raise UserError(f"--images {folder}: an image has {side} pixels along a side, fewer than {SIDES[-1]}")
    return {
        "name": quoted(name),
        "classes": len(training.class_names),
        "images": len(training),
        "image_size": fitting[0],
        "split": split,
    }


def _side(path: str) -> int:
    try:
        return min(read_image(path).size)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}): repair or remove it") from None


def plain(text: str) -> str:
    """Returns a text with _ for what no name of data or of a profile holds."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip("_.-")[:64]


def quoted(text: str) -> str:
    """Returns a text as YAML reads it, even if it looks like a number, or holds # or a colon."""
    return json.dumps(text, ensure_ascii=False)  # as it is: of \ud83d\ude00 YAML would make two letters


def power_of_two(number: int) -> int:
    """Returns the largest power of two that is not above a number, or 1."""
    return 1 << max(0, number.bit_length() - 1)
