"""Sets of images on disk, read and written part by part.

They are folders, or .npz files as the ADM evaluator takes them. Images are uint8 (B, h, w, 3)
everywhere. Memory holds one part, whatever the number of images.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from PIL import Image

from mirai_bench.data.images.decoding import SUFFIXES, UNREADABLE, read_image
from mirai_bench.utils.errors import UserError, shortened
from mirai_bench.utils.files import atomic

log = logging.getLogger(__name__)

# Number of images that are read at a time.
PART = 500
# Shape and type of an array.
MOST_ARRAYS = 100  # in one file
MOST_HEADER = 10_000  # bytes
MOST_PACKED = 1_032  # bytes that deflate packs into one
Header = tuple[tuple[int, ...], np.dtype]


# ---- reading


def _read_header(file: IO[bytes]) -> Header:
    """Returns the header of an .npy stream, which is then at the array's first value.

    Raises ValueError for pickled objects, and for a header that no array has.
    """
    npy = np.lib.format
    version = npy.read_magic(file)
    # The length of the header comes first. Version 1 has two bytes for it, later ones four.
    length = file.read(2 if version == (1, 0) else 4)
    size = int.from_bytes(length, "little")
    if size > MOST_HEADER:
        raise ValueError(f"a header of {size:,} bytes")
    start = io.BytesIO(length + file.read(size))
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(start)
    if any(side < 0 for side in shape):
        raise ValueError(f"a shape of {shape}")
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise ValueError("it holds pickled objects, or is in Fortran order")
    return shape, dtype


def npz_arrays(path: Path) -> dict[str, Header]:
    """Returns the header of each array of an .npz file, and reads none of them.

    Raises UserError if the file cannot be read, or only with pickle.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_ARRAYS:
                raise ValueError(f"it has {len(members):,} members")
            for member in members:
                with archive.open(member) as file:
                    shape, dtype = _read_header(file)
                # No header is believed that says more than there is, or than deflate can pack.
                present = min(member.file_size, MOST_PACKED * member.compress_size)
                if math.prod(shape) * dtype.itemsize > present:
                    name = member.filename
                    raise ValueError(f"{name} has {present:,} bytes, too few for {dtype} {shape}")
                arrays[member.filename.removesuffix(".npy")] = (shape, dtype)
    except Exception as error:  # what a damaged archive or header raises is not documented
        reason = shortened(str(error), 300)
        raise UserError(f"{path} is not an .npz file that can be read safely: {reason}") from None
    return arrays


# What reading a member may raise, its checksum among the reasons.
DAMAGED = (OSError, LookupError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@contextmanager
def opened_npz(path: Path) -> Iterator[Any]:
    """Yields the arrays of an .npz file by their names. Raises UserError if one cannot be read."""
    npz_arrays(path)  # whose headers are bounded
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except DAMAGED as error:
        raise UserError(f"{path} is damaged, or is no file of this kind ({error})") from None


class NpzImages:
    """The images `arr_0` uint8 (n, h, w, 3) of an .npz file, as ADM's batches have them."""

    left_out: ClassVar[dict[str, int]] = {}

    def __init__(self, path: Path) -> None:
        arrays = npz_arrays(path)
        shape, dtype = arrays.get("arr_0", ((), np.dtype(np.uint8)))
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
            found = ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in arrays.items())
            raise UserError(
                f"{path} holds no images: expected arr_0, uint8 (n, h, w, 3); found {found or 'nothing'}"
            )
        self.path = path
        self.shape = shape
        self._archive = zipfile.ZipFile(path)
        names = self._archive.namelist()
        self._file = self._archive.open("arr_0.npy" if "arr_0.npy" in names else "arr_0")
        _read_header(self._file)
        self._start = self._file.tell()
        # The classes `arr_1` (n,), if the file has them.
        self.labels: np.ndarray | None = None
        shape, dtype = arrays.get("arr_1", ((), np.dtype(np.float64)))
        if shape == (len(self),) and dtype.kind in "iu":
            with opened_npz(path) as file:
                self.labels = file["arr_1"]
        elif "arr_1" in arrays:
            found = f"arr_1 is {dtype} {shape}"
            log.warning(f"{path}: there is no class accuracy: {found}, and not integers ({len(self)},)")

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: range) -> np.ndarray:
        """Returns images. Fast for rows that follow those of the last call."""
        size = self.shape[1] * self.shape[2] * 3  # bytes per image
        try:
            self._file.seek(self._start + rows.start * size)
            content = self._file.read(len(rows) * size)
        except DAMAGED as error:
            raise UserError(f"{self.path} is damaged ({error})") from None
        if len(content) < len(rows) * size:
            last = rows.start + len(content) // size
            raise UserError(f"{self.path} ends within image {last}: it is truncated")
        # A bytearray, because torch warns of arrays that cannot be written to.
        return np.frombuffer(bytearray(content), np.uint8).reshape(len(rows), *self.shape[1:])


class FolderImages:
    """All images in a folder and its subfolders, by relative path. They must have one size."""

    labels = None

    def __init__(self, path: Path) -> None:
        named = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        # Copies that Jupyter and macOS leave are no samples.
        files = [file for file in named if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        # Number of images that are not read, by the reason.
        self.left_out = {"hidden": len(named) - len(files)} if len(files) < len(named) else {}
        if self.left_out:
            log.warning(f"{path}: {self.left_out['hidden']} hidden images are left out")
        if not files:
            raise UserError(f"{path} holds no image (known endings: {', '.join(sorted(SUFFIXES))})")
        self.path = path
        self.files = sorted(files)
        self.shape = (len(files), *self._read(self.files[0]).shape)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, file: Path) -> np.ndarray:
        try:
            return np.asarray(read_image(file))
        except UNREADABLE as error:
            raise UserError(f"{file} cannot be read as an image: {error}") from None

    def read(self, rows: range) -> np.ndarray:
        """Returns images. Raises UserError if one is damaged or has another size than the first."""
        images = []
        for file in self.files[rows.start : rows.stop]:
            image = self._read(file)
            if image.shape != self.shape[1:]:
                size = f"{image.shape[1]}x{image.shape[0]} pixels"
                first = f"{self.files[0].name} is {self.shape[2]}x{self.shape[1]}"
                raise UserError(f"{file} is {size} and {first}: bring all to one size first")
            images.append(image)
        return np.stack(images)


ImageSet = NpzImages | FolderImages


def open_images(path: Path) -> ImageSet:
    """Opens a folder of images, or an .npz file with arr_0. Raises UserError for anything else."""
    if path.is_dir():
        return FolderImages(path)
    advice = "write a run folder, a folder of images, or an .npz file with arr_0"
    if not path.exists():
        raise UserError(f"There is no {str(path)!r}: {advice}")
    if path.suffix != ".npz":
        raise UserError(f"{path} is neither a folder nor an .npz file: {advice}")
    return NpzImages(path)


def parts(images: ImageSet) -> Iterator[np.ndarray]:
    """Yields all images, some at a time."""
    for start in range(0, len(images), PART):
        yield images.read(range(start, min(start + PART, len(images))))


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Returns the images uint8 (B, side, side, 3), resized by Pillow's bicubic filter.

    The filter is antialiased. A side of 0 leaves the images as they are.
    """
    if side == 0 or images.shape[1:3] == (side, side):
        return images
    pictures = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(picture) for picture in pictures])


# ---- writing


class NpzWriter:
    """Writes n images as `arr_0` and their labels as `arr_1`, as they come.

    `close` gives the file its name. It is opened by the first images: of several processes, each of
    which has a writer, only one gets images.
    """

    def __init__(self, path: Path, n: int) -> None:
        if path.suffix != ".npz" or not path.absolute().parent.is_dir():
            raise UserError(f"{path}: write a name that ends in .npz, in a folder that is there")
        self.path = path
        self.n = n
        self.seen = 0
        self.labels: list[np.ndarray] = []
        self._open_files = ExitStack()

    def add(self, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Appends images uint8 (B, h, w, 3) and, if there are any, their labels (B,)."""
        if self.seen == 0:
            temporary = self._open_files.enter_context(atomic(self.path))
            self._archive = self._open_files.enter_context(zipfile.ZipFile(temporary, "w"))
            # zip64: the array may be larger than 4 GB.
            self._file = self._archive.open("arr_0.npy", "w", force_zip64=True)
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.n, *images.shape[1:])}
            np.lib.format.write_array_header_1_0(self._file, header)
        try:
            self._file.write(np.ascontiguousarray(images).tobytes())
        except OSError:
            # Closed now, because what is left of it could not be written later either.
            for part in (self._file, self._archive):
                with suppress(OSError):
                    part.close()
            self._open_files.__exit__(*sys.exc_info())
            raise
        self.seen += len(images)
        if labels is not None:
            self.labels.append(labels)

    def close(self) -> None:
        """Writes the labels and gives the file its name."""
        assert self.seen == self.n > 0, "as many images as announced"
        with self._open_files:
            self._file.close()
            if self.labels:
                labels = np.concatenate(self.labels).astype(np.int64)
                with self._archive.open("arr_1.npy", "w") as file:
                    np.lib.format.write_array(file, labels, allow_pickle=False)
