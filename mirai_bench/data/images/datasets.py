"""The data sets: where their images and labels are, and which images are held out."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mirai_bench.config.data_config import OFFICIAL_SIZES, DataConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images import cifar10, fashion_mnist, staircase
from mirai_bench.data.images.decoding import SUFFIXES, read_image
from mirai_bench.data.images.listing import (
    content_hash,
    describe,
    file_digests,
    is_held_out,
    list_images,
    renumbered,
)
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.outside import SEE

log = logging.getLogger(__name__)

Split = Literal["train", "heldout"]

# Number of the 1,797 digits that are held out.
DIGITS_HELDOUT = 297


@dataclass(frozen=True)
class Dataset:
    """The images of a split, in memory or as files, and their labels."""

    name: str
    """Name of the data set."""
    sha256: str
    """Hash of the pixels, or of the names and contents of the files (folder)."""
    class_names: tuple[str, ...]
    """Names of the classes."""
    labels: np.ndarray
    """Classes (N,) int64."""
    images: np.ndarray | None = None
    """Images uint8 (N, h, w, 3), if all of them are in memory."""
    files: tuple[str, ...] = ()
    """Paths of the images otherwise."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of files of the class folders that are not read, by the reason."""
    empty: tuple[str, ...] = ()
    """Classes without any image in this split."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        """Returns image `i`. Raises one of `decoding.UNREADABLE` if its file is corrupt."""
        if self.images is not None:
            return Image.fromarray(self.images[i])
        return read_image(self.files[i])

    def part(self, rows: range) -> Dataset:
        """Returns the data set of these consecutive rows."""
        here = slice(rows.start, rows.stop)
        images = None if self.images is None else self.images[here]
        return replace(self, labels=self.labels[here], images=images, files=self.files[here])

    @property
    def identity(self) -> dict[str, Any]:
        """Returns what records say about the data. Data of one identity are the same."""
        return {"name": self.name, "sha256": self.sha256, "images": len(self)}


def open_dataset(config: RunConfig, split: Split) -> Dataset:
    """Returns the data set of a configuration.

    Raises UserError if the images are not found, if their classes are not data.classes, or if they
    are a subset that data.subset does not name.
    """
    data = config.data
    dataset = DATASETS[data.dataset](config, split)
    check_size(data, split, len(dataset), config.machine.data)
    found = len(dataset.class_names)
    if found != data.classes:
        raise UserError(
            f"data.classes is {data.classes}, but {dataset.name} has {found}: write data.classes: {found}"
        )
    return dataset


def check_size(data: DataConfig, split: Split, found: int, where: Path | None) -> None:
    """Raises UserError if a subset is taken for the whole data set, or is not the one of the config.

    Fingerprints do not contain the images, so that the config has to say which experiment it is.
    """
    if data.dataset not in OFFICIAL_SIZES:
        return
    training, heldout = OFFICIAL_SIZES[data.dataset]
    if data.subset is not None:
        training, heldout = data.subset, found  # a subset may hold out any number of images
    wanted = training if split == "train" else heldout
    if found != wanted:
        raise UserError(
            f"{where} holds {found:,} images ({split}), but data.subset: {data.subset or 'null'} means "
            f"{wanted:,}: write the number of training images of a subset, and leave data.subset out for "
            f"the whole {data.dataset}"
        )


def has_heldout_images(config: RunConfig) -> bool:
    """Tells whether the data set has a held-out split.

    A folder has one if its `val` has class folders, or if a share of it is held out. All other data sets have
    one.
    """
    if config.data.dataset != "folder" or config.data.heldout_share is not None:
        return True
    path = config.machine.data
    return path is not None and path.is_dir() and split_root(path, "heldout") is not None


def _existing(path: Path | None, what: str) -> Path:
    """Returns machine.data. Raises UserError if it is not set, or does not exist."""
    if path is None:
        raise UserError(f"machine.data is not set: write --set machine.data=PATH, where PATH is {what} {SEE}")
    if not path.exists():
        raise UserError(f"machine.data is {str(path)!r}, which does not exist: write the path of {what}")
    return path


def in_memory(name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Dataset:
    """Returns the data set of images uint8 (N, h, w, 3) and their classes (N,)."""
    labels = labels.astype(np.int64)
    # In little-endian order, so that the hash is the same on every machine.
    sha = hashlib.sha256(np.ascontiguousarray(images).data)
    sha.update(labels.astype("<i8").tobytes())
    return Dataset(name, sha.hexdigest(), class_names, labels, images)


# ---- digits


def _open_digits(config: RunConfig, split: Split) -> Dataset:
    return _digits(split)


@lru_cache(maxsize=2)
def _digits(split: Split) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = bunch.images  # (1797, 8, 8) grey levels 0…16
    labels = bunch.target
    # Every sixth image or so of a shuffled list that is sorted by label: the split is stratified to
    # within one image. The stream of RandomState is frozen for good.
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    heldout = np.zeros(len(labels), bool)
    heldout[order[np.arange(DIGITS_HELDOUT) * len(labels) // DIGITS_HELDOUT]] = True
    rows = heldout if split == "heldout" else ~heldout
    grey = np.round(levels[rows] * 255 / 16).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    return in_memory("digits", images, labels[rows], tuple("0123456789"))


# ---- the planted data set


def _staircase(config: RunConfig, split: Split) -> Dataset:
    data = config.data
    tokenizer = config.tokenizer
    found = (data.image_size, data.views, tokenizer.name, tokenizer.vocabulary)
    if found != (staircase.SIDE, "center", "pixel", staircase.CODES):
        raise UserError(
            f"data.dataset is staircase with data.image_size {data.image_size}, views {data.views} and "
            f"tokenizer {tokenizer.name} of {tokenizer.vocabulary} codes: write image_size: "
            f"{staircase.SIDE}, views: center and tokenizer: {{name: pixel, vocabulary: {staircase.CODES}}}"
        )
    images = staircase.make_images(staircase.make_codes(data.staircase, split))
    return in_memory("staircase", images, np.zeros(len(images)), ("grid",))


# ---- CIFAR-10 and Fashion-MNIST

READERS = {"cifar10": cifar10, "fashion_mnist": fashion_mnist}


def _open_small_images(config: RunConfig, split: Split) -> Dataset:
    name = config.data.dataset
    return _small_images(name, _existing(config.machine.data, READERS[name].FILES), split)


@lru_cache(maxsize=2)
def _small_images(name: str, path: Path, split: Split) -> Dataset:
    reader = READERS[name]
    images, labels = reader.read(path, "train" if split == "train" else "test")
    return in_memory(name, np.ascontiguousarray(images), labels, reader.CLASSES)


# ---- folders


def class_folders(root: Path) -> list[str]:
    """Returns the names of the classes that a folder has."""
    # Hidden folders, such as .ipynb_checkpoints, are no classes.
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    return sorted(entry.name for entry in entries if entry.is_dir())


def split_root(path: Path, split: Split) -> Path | None:
    """Returns the folder of a split's class folders, or None if there is none.

    It is PATH/train or PATH/val (the layout of ImageNet), or PATH itself, which is then all
    training.
    """
    if (path / "train").is_dir():
        path = path / ("train" if split == "train" else "val")
    elif split == "heldout":
        return None
    return path if path.is_dir() and class_folders(path) else None


def _open_folder(config: RunConfig, split: Split) -> Dataset:
    existing = _existing(config.machine.data, "a folder of class/image files")
    data = config.data
    return open_folder(existing, split, data.name, config.machine.runs, data.heldout_share)


@lru_cache(maxsize=4)
def open_folder(path: Path, split: Split, name: str, runs: Path, share: float | None) -> Dataset:
    """Returns the data set `name` of a folder, of which this share is held out if it has no `val`.

    Digests of many files are kept in `runs` if the folder cannot be written. Raises UserError if the split
    has no image.
    """
    root = split_root(path, split if share is None else "train")
    if root is None:
        forms = {
            "train": "class/image or {train,val}/class/image",
            "heldout": "{train,val}/class/image, or data.heldout_share: 0.1",
        }
        raise UserError(f"{path} has no class folders for the {split} split: write {forms[split]}")
    if share is not None and split_root(path, "heldout") is not None:
        raise UserError(
            f"data.heldout_share is {share}, but {path} has a folder val of its own, whose images are held "
            "out: leave the share out, or remove val"
        )
    # 1. The classes are those of training, so that a class without held-out images keeps its
    # number.
    classes = class_folders(split_root(path, "train") or root)
    for other in class_folders(root):
        if other not in classes:
            raise unknown(f"class folder of {root}", other, classes)
    # 2. Their files.
    log.info(f"listing {root}")
    files, labels, left_out, empty = list_images(root, classes)
    if not files:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{root} holds no image in its class folders (known endings: {endings})")
    # 3. Their contents, by which some of them may be held out.
    digests = file_digests(root, files, runs)
    if share is not None:
        held_out = [is_held_out(sha256, share) for sha256 in digests]
        rows = [row for row, held in enumerate(held_out) if held == (split == "heldout")]
        if not rows:
            raise UserError(
                f"data.heldout_share is {share} of {len(files)} images, which leaves none for the {split} "
                f"split: add images to {root}, or write {path}/{{train,val}}/class/image without a share"
            )
        files = [files[row] for row in rows]
        labels = [labels[row] for row in rows]
        digests = [digests[row] for row in rows]
        present = set(labels)
        empty = [name for label, name in enumerate(classes) if label not in present]
    _say(root, split, classes, left_out, empty)
    return Dataset(
        name,
        content_hash(root, files, digests),
        tuple(classes),
        np.array(labels, np.int64),
        files=tuple(entry.path for entry in files),
        left_out=left_out,
        empty=tuple(empty),
    )


def _say(root: Path, split: Split, classes: list[str], left_out: dict[str, int], empty: list[str]) -> None:
    """Logs what a user may not expect of a folder of images."""
    if left_out:
        log.warning(f"{root}: files are left out: {describe(left_out)}")
    if empty and split == "train":
        names = ", ".join(empty[:20])
        log.warning(f"{root}: no image in {len(empty)} classes, which a model never sees: {names}")
    if renumbered(classes) and sorted(classes, key=int) != classes:
        first = next(number for number, name in enumerate(classes) if number != int(name))
        log.warning(
            f"{root}: classes are in the order of their names as text, so that class {first} is the folder "
            f"{classes[first]!r}: write 00, 01, … to have them in the order of the numbers"
        )


# ---- all of them

DATASETS: dict[str, Callable[[RunConfig, Split], Dataset]] = {
    "digits": _open_digits,
    "staircase": _staircase,
    **dict.fromkeys(READERS, _open_small_images),
    "folder": _open_folder,
}
