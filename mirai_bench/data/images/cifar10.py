"""CIFAR-10, from the official batches of its python version or from an .npz file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from mirai_bench.data.images.small_images import Labelled, Part, checked, read_npz
from mirai_bench.utils.errors import UserError

FILES = "cifar10.npz or the folder cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What numpy's arrays need when they are unpickled, by the names of numpy 1 and numpy 2.
ARRAY_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
# What a pickle may raise: its damaged instructions do anything that is allowed.
DAMAGED = (OSError, pickle.PickleError, EOFError, LookupError, ValueError, TypeError, AttributeError)
ARRAY_NAMES = ("ndarray", "dtype", "_reconstruct")


def read(path: Path, part: Part) -> Labelled:
    """Returns the images uint8 (N, 32, 32, 3) and labels (N,) of a split.

    Raises UserError if the file or folder holds anything else.
    """
    candidates = (path, path / "cifar-10-batches-py")
    folders = [folder for folder in candidates if (folder / "data_batch_1").is_file()]
    if folders:
        images, labels = _read_batches(folders[0], part)
    else:
        images, labels = read_npz(path, part, "cifar10.npz", "CIFAR-10", "the folder cifar-10-batches-py")
    return checked(path, images, labels, (32, 32, 3))


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays and plain containers only, so that no file can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in ARRAY_MODULES or name not in ARRAY_NAMES:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_batches(folder: Path, part: Part) -> Labelled:
    """Returns the images uint8 (N, 32, 32, 3) and labels (N,) of the folder cifar-10-batches-py."""
    images = []
    labels = []
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    for name in names:
        try:
            with open(folder / name, "rb") as file:
                batch = _ArraysOnly(file, encoding="bytes").load()
            # Each row holds the red, then the green, then the blue channel.
            images.append(np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"]))
        except DAMAGED as error:
            raise UserError(
                f"{folder / name} is not a batch file of CIFAR-10's python version: {error}"
            ) from None
    return np.concatenate(images).transpose(0, 2, 3, 1), np.concatenate(labels)
