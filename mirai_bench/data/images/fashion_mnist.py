"""Fashion-MNIST (arXiv 1708.07747), from the official IDX files or from an .npz file.

An IDX file holds two zero bytes, the type of the values (8: unsigned bytes), the number of
dimensions, each dimension as a big-endian 32-bit integer, and then the values.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from mirai_bench.data.images.small_images import Labelled, Part, checked, read_npz
from mirai_bench.utils.errors import UserError

OFFICIAL = "a folder of the official files (train-images-idx3-ubyte[.gz], …)"
FILES = f"fashion_mnist.npz or {OFFICIAL}"
CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
MOST = 60_000  # images of a file: a header that says more is not believed, nor memory taken for it
PREFIXES = {"train": "train", "test": "t10k"}  # how the names of the official files begin


def read(path: Path, part: Part) -> Labelled:
    """Returns the images uint8 (N, 28, 28, 3), grey in all channels, and labels (N,) of a split.

    Raises UserError if the file or folder holds anything else.
    """
    images = f"{PREFIXES[part]}-images-idx3-ubyte"
    labels = f"{PREFIXES[part]}-labels-idx1-ubyte"
    if _find(path, images) or _find(path, labels):
        arrays = _read_idx(path, images, (28, 28)), _read_idx(path, labels, ())
    else:
        arrays = read_npz(path, part, "fashion_mnist.npz", "Fashion-MNIST", OFFICIAL)
    grey, classes = checked(path, *arrays, (28, 28))
    return np.repeat(grey[..., None], 3, axis=-1), classes


def _find(folder: Path, name: str) -> Path | None:
    """Returns the plain or the gzipped file of this name, or None."""
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    return None


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the values uint8 (N, *shape) of an IDX file.

    Raises UserError if the file is missing, truncated, longer than its header says, or of another
    shape.
    """
    path = _find(folder, name)
    if path is None:
        raise UserError(f"{folder} lacks {name}[.gz]: write the path of {FILES}")
    dimensions = 1 + len(shape)
    advice = f"write the path of {FILES}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            zeros, kind, found, *sizes = struct.unpack(f">HBB{dimensions}I", file.read(4 + 4 * dimensions))
            if (zeros, kind, found) != (0, 8, dimensions):
                raise ValueError(f"it does not begin as an IDX file of bytes in {dimensions} dimensions")
            if tuple(sizes[1:]) != shape or not 0 < sizes[0] <= MOST:
                wanted = [f"1 … {MOST}", *map(str, shape)]
                raise ValueError(f"its header says {sizes}, not [{', '.join(wanted)}]")
            expected = int(np.prod(sizes))  # bytes
            content = file.read(expected + 1)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is not a file of Fashion-MNIST ({error}): {advice}") from None
    if len(content) != expected:
        state = "ends early" if len(content) < expected else "goes on after its last value"
        raise UserError(f"{path} {state}: its header says {sizes}, {expected:,} bytes: {advice}")
    return np.frombuffer(content, np.uint8).reshape(sizes)
