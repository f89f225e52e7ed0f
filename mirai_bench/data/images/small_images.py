"""What the readers of CIFAR-10 and Fashion-MNIST share: the .npz file, and the check of the arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mirai_bench.utils.arrays import UNREADABLE
from mirai_bench.utils.errors import UserError

Part = Literal["train", "test"]
"""A split, as the files of both data sets call it: `test` is what the project holds out."""
Labelled = tuple[np.ndarray, np.ndarray]
"""Images uint8 (N, …) and labels (N,)."""


def read_npz(path: Path, part: Part, file: str, title: str, official: str) -> Labelled:
    """Returns the arrays x_… and y_… of an .npz file, or of the folder that holds it as `file`.

    Raises UserError, which says what could be written instead: `file`, or the `official` files.
    """
    try:
        with np.load(path / file if path.is_dir() else path, allow_pickle=False) as arrays:
            return arrays[f"x_{part}"], arrays[f"y_{part}"]
    except UNREADABLE as error:
        reason = str(error).split(". ")[0]  # the rest of numpy's message is how to read pickles
        raise UserError(
            f"machine.data is {str(path)!r}, which holds no {title} ({reason}): write the path of "
            f"{file} (x_train, y_train, x_test, y_test) or of {official}"
        ) from None


def checked(path: Path, images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> Labelled:
    """Returns images uint8 (N, *shape) and labels (N,) as given, the labels flat.

    Raises UserError if they are anything else, or if a label is not one of ten classes.
    """
    n = images.shape[0] if images.ndim else 0
    if images.shape != (n, *shape) or images.dtype != np.uint8 or labels.shape not in ((n,), (n, 1)):
        wanted = ", ".join(str(side) for side in ("N", *shape))
        found = f"images {images.dtype} {images.shape} and {labels.size} labels"
        raise UserError(f"{path} holds {found}: write uint8 ({wanted}) and N")
    if labels.dtype.kind not in "ui":
        raise UserError(f"{path} holds labels {labels.dtype}: write integers 0 … 9")
    wrong = labels[(labels < 0) | (labels > 9)]
    if len(wrong):
        raise UserError(f"{path} holds the label {wrong[0]}: write 0 … 9")
    return images, labels.reshape(-1)
