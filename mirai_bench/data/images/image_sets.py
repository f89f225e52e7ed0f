"""Sets of images on the disk, read and written a part at a time: folders, and .npz files as the ADM evaluator takes them.

Images are uint8 (B, h, w, 3) everywhere. Memory is one part, whatever the number of images.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mirai_bench.data.images.datasets import SUFFIXES
from mirai_bench.utils.errors import UserError

PART = 500  # images read at a time


def npz_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array whose .npy stream this is; the stream stands at its first value. Refuses pickled objects."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise ValueError("it holds pickled objects, or is in Fortran order")
    return shape, dtype


def npz_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of an .npz file; none of them is read. Raises UserError for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = npz_header(file)
            return arrays
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{path} is not an .npz file that can be read safely: {error}") from None


class NpzImages:
    """`arr_0` uint8 (n, h, w, 3) of an .npz file, as ADM's sample and reference batches have it."""

    def __init__(self, path: Path) -> None:
        arrays = npz_arrays(path)
        shape, dtype = arrays.get("arr_0", ((), np.dtype(np.uint8)))
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
            found = ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in arrays.items())
            raise UserError(
                f"{path} holds no images: expected arr_0, uint8 (n, h, w, 3); found {found or 'nothing'}"
            )
        self.path, self.shape = path, shape
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open("arr_0.npy")
        npz_header(self._file)
        self._start = self._file.tell()
        self.labels = self._labels(arrays)

    def _labels(self, arrays: dict[str, tuple[tuple[int, ...], np.dtype]]) -> np.ndarray | None:
        """`arr_1` (n,), the classes, where the file has them."""
        shape, dtype = arrays.get("arr_1", ((), np.dtype(np.float64)))
        if shape != (len(self),) or dtype.kind not in "iu":
            return None
        with np.load(self.path, allow_pickle=False) as file:
            return file["arr_1"]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: range) -> np.ndarray:
        """Fast for rows that follow those of the last call."""
        size = self.shape[1] * self.shape[2] * 3
        self._file.seek(self._start + rows.start * size)
        content = self._file.read(len(rows) * size)
        if len(content) < len(rows) * size:
            raise UserError(
                f"{self.path} ends within image {rows.start + len(content) // size}: it is truncated"
            )
        return np.frombuffer(bytearray(content), np.uint8).reshape(len(rows), *self.shape[1:])


class FolderImages:
    """All images below a folder, in the order of their relative paths; they must have one size."""

    labels = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not self.files:
            raise UserError(f"{path} holds no image (known endings: {', '.join(sorted(SUFFIXES))})")
        self.shape = (len(self.files), *self._read(self.files[0]).shape)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} cannot be read as an image: {error}") from None

    def read(self, rows: range) -> np.ndarray:
        images = [self._read(self.files[row]) for row in rows]
        for row, image in zip(rows, images, strict=True):
            if image.shape != self.shape[1:]:
                size, first = f"{image.shape[1]}x{image.shape[0]}", f"{self.shape[2]}x{self.shape[1]}"
                raise UserError(
                    f"{self.files[row]} is {size} pixels and {self.files[0].name} is {first}: bring all to one size first"
                )
        return np.stack(images)


ImageSet = NpzImages | FolderImages


def open_images(path: Path) -> ImageSet:
    """A folder of images or an .npz file with arr_0. Raises UserError for anything else."""
    if path.is_dir():
        return FolderImages(path)
    if not path.exists():
        raise UserError(
            f"There is no {str(path)!r}: write a run folder, a folder of images, or an .npz file with arr_0"
        )
    if path.suffix != ".npz":
        raise UserError(
            f"{path} is neither a folder nor an .npz file: write a folder of images, or an .npz file with arr_0"
        )
    return NpzImages(path)


def parts(images: ImageSet) -> Iterator[np.ndarray]:
    for start in range(0, len(images), PART):
        yield images.read(range(start, min(start + PART, len(images))))


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """To side x side by Pillow's bicubic filter, which widens with the scale (antialiasing); uint8 in, uint8 out. 0 leaves them as they are."""
    if side == 0 or images.shape[1:3] == (side, side):
        return images
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
            for image in images
        ]
    )


class NpzWriter:
    """n images as `arr_0` and their labels as `arr_1`, written as they come; the file appears when all have come."""

    def __init__(self, path: Path, n: int) -> None:
        if path.suffix != ".npz" or not path.absolute().parent.is_dir():
            raise UserError(f"--npz {path}: write a name that ends in .npz, in a folder that is there")
        self.path, self.n, self.seen = path, n, 0
        self.labels: list[np.ndarray] = []
        self.temporary = path.with_name(path.name + ".tmp")
        self._archive: zipfile.ZipFile | None = (
            None  # opened by the first images: of several processes one writes
        )
        self._file: IO[bytes] | None = None

    def add(self, images: np.ndarray, labels: np.ndarray | None) -> None:
        if self._archive is None or self._file is None:
            self._archive = zipfile.ZipFile(self.temporary, "w")
            self._file = self._archive.open("arr_0.npy", "w", force_zip64=True)
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.n, *images.shape[1:])}
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(np.ascontiguousarray(images).tobytes())
        self.seen += len(images)
        if labels is not None:
            self.labels.append(labels)

    def close(self) -> None:
        assert self.seen == self.n and self._archive is not None and self._file is not None, (
            "as many images as announced"
        )
        self._file.close()
        if self.labels:
            with self._archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(
                    file, np.concatenate(self.labels).astype(np.int64), allow_pickle=False
                )
        self._archive.close()
        os.replace(self.temporary, self.path)
