"""Where images and labels come from. One entry of DATASETS each: (config, split) → Dataset."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError, unknown

Split = Literal["train", "heldout"]


SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}


DIGITS_HELDOUT = 297


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Dataset:
    name: str
    sha256: str
    """of the pixels (digits, cifar10), or of the file names and sizes (folder)"""
    class_names: tuple[str, ...]
    labels: np.ndarray
    """(N,) int64"""
    images: np.ndarray | None = None
    """uint8 (N, h, w, 3), where all of them are in memory"""
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        """Raises OSError, ValueError or another of prepare.UNREADABLE where the file is corrupt."""
        if self.images is not None:
            return Image.fromarray(self.images[i])
        with Image.open(self.files[i]) as image:
            return image.convert("RGB")

    def part(self, rows: range) -> Dataset:
        images = None if self.images is None else self.images[rows.start : rows.stop]
        return replace(
            self,
            labels=self.labels[rows.start : rows.stop],
            images=images,
            files=self.files[rows.start : rows.stop],
        )

    def describe(self, i: int) -> str:
        return self.files[i] if self.files else f"{self.name} image {i}"

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "images": len(self)}


def _in_memory(name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Dataset:
    labels = labels.astype(np.int64)
    sha = hashlib.sha256(np.ascontiguousarray(images))
    sha.update(labels.astype("<i8").tobytes())
    return Dataset(name, sha.hexdigest(), class_names, labels, images)


@lru_cache(maxsize=2)
def _digits(split: Split) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels, labels = bunch.images, bunch.target  # (1797, 8, 8) grey levels 0…16
    # Every sixth image or so of a label-sorted, shuffled list: stratified to within one image. RandomState's stream is frozen for good.
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    heldout = np.zeros(len(labels), bool)
    heldout[order[np.arange(DIGITS_HELDOUT) * len(labels) // DIGITS_HELDOUT]] = True
    rows = heldout if split == "heldout" else ~heldout
    images = np.repeat(np.round(levels[rows] * 255 / 16).astype(np.uint8)[..., None], 3, axis=-1)
    return _in_memory("digits", images, labels[rows], tuple(map(str, range(10))))


def digits(config: RunConfig, split: Split) -> Dataset:
    return _digits(split)


def _data_path(config: RunConfig, what: str) -> Path:
    path = config.machine.data
    if path is None:
        raise UserError(f"machine.data is not set: write --set machine.data=PATH, where PATH is {what}")
    if not path.exists():
        raise UserError(f"machine.data is {str(path)!r}, which does not exist: write the path of {what}")
    return path


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays and plain containers; refuses every other global, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"refused {module}.{name}")


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One file of cifar-10-batches-py → images uint8 (n, 32, 32, 3), labels (n,)."""
    try:
        with open(path, "rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, np.asarray(batch[b"labels"], np.int64)
    except (OSError, pickle.UnpicklingError, KeyError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"{path} is not a batch file of CIFAR-10's python version: {error}") from None


@lru_cache(maxsize=2)
def _cifar10(path: Path, split: Split) -> Dataset:
    folder = next((f for f in (path, path / "cifar-10-batches-py") if (f / "data_batch_1").is_file()), None)
    if folder is not None:
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        parts = [_read_batch(folder / name) for name in names]
        images, labels = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    else:
        file = path / "cifar10.npz" if path.is_dir() else path
        key = "train" if split == "train" else "test"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                images, labels = arrays[f"x_{key}"], arrays[f"y_{key}"]
        except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
            reason = str(error).split(". ")[0]  # numpy goes on with how to read pickles all the same
            raise UserError(
                f"machine.data is {str(path)!r}, which holds no CIFAR-10 ({reason}): write the path of cifar10.npz "
                "(x_train, y_train, x_test, y_test) or of the folder cifar-10-batches-py"
            ) from None
    if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8 or len(images) != len(labels):
        raise UserError(
            f"{path} holds images {images.dtype} {images.shape} and {len(labels)} labels: write uint8 (N, 32, 32, 3) and N"
        )
    return _in_memory("cifar10", np.ascontiguousarray(images), labels.reshape(-1), CIFAR10_CLASSES)


def cifar10(config: RunConfig, split: Split) -> Dataset:
    return _cifar10(_data_path(config, "cifar10.npz or the folder cifar-10-batches-py"), split)


def _class_folders(root: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )


def split_root(path: Path, split: Split) -> Path | None:
    """The folder of a split's class folders: PATH/train and PATH/val (ImageNet's layout), or PATH itself, which is then all training."""
    if (path / "train").is_dir():
        path = path / ("train" if split == "train" else "val")
    elif split == "heldout":
        return None
    return path if path.is_dir() and _class_folders(path) else None


def _images_in(folder: Path) -> list[os.DirEntry[str]]:
    entries = os.scandir(folder) if folder.is_dir() else ()
    return sorted(
        (e for e in entries if os.path.splitext(e.name)[1].lower() in SUFFIXES), key=lambda e: e.name
    )


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:
        raise UserError(f"{entry.path} could not be opened ({error.strerror}): repair or remove it") from None


@lru_cache(maxsize=4)
def _folder(path: Path, split: Split, name: str) -> Dataset:
    root = split_root(path, split)
    if root is None:
        raise UserError(
            f"{path} has no class folders for the {split} split: write class/image, or train/class/image and val/class/image"
        )
    classes = _class_folders(split_root(path, "train") or root)
    for other in _class_folders(root):
        if other not in classes:
            raise unknown(f"class folder of {root}", other, classes)
    files, labels, listing = [], [], hashlib.sha256()
    say(f"listing {root}")
    for label, class_name in enumerate(classes):
        for entry in _images_in(root / class_name):
            files.append(entry.path)
            labels.append(label)
            listing.update(f"{class_name}/{entry.name} {_size(entry)}\n".encode())
    if not files:
        raise UserError(
            f"{root} holds no image in its class folders (known endings: {', '.join(sorted(SUFFIXES))})"
        )
    return Dataset(name, listing.hexdigest(), tuple(classes), np.array(labels, np.int64), files=tuple(files))


def folder(config: RunConfig, split: Split) -> Dataset:
    return _folder(_data_path(config, "a folder of class/image files"), split, config.data.name)


DATASETS: dict[str, Callable[[RunConfig, Split], Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "folder": folder,
}


def open_dataset(config: RunConfig, split: Split) -> Dataset:
    """Raises UserError where the images are not found or their classes are not data.classes."""
    dataset = DATASETS[config.data.dataset](config, split)
    if len(dataset.class_names) != config.data.classes:
        raise UserError(
            f"data.classes is {config.data.classes}, but {dataset.name} has {len(dataset.class_names)}: "
            f"write data.classes: {len(dataset.class_names)}"
        )
    return dataset


def has_heldout_images(config: RunConfig) -> bool:
    """digits and cifar10 have a held-out split; a folder does where its val has class folders."""
    if config.data.dataset != "folder":
        return True
    path = config.machine.data
    return path is not None and path.is_dir() and split_root(path, "heldout") is not None
