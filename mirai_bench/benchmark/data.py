"""`benchmark data`: random access to codes, as shards and as one pair of .npy files per image.

The pairs are the official layout: codes int64 (1, T) and a label (1,). Both layouts are written
just before and read in a fresh Python process, so that they come from the page cache. What is
compared is the cost of the layout, not that of the disk.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.targets import Row
from mirai_bench.benchmark.timing import in_fresh_process, spread
from mirai_bench.data.shards import open_shards

log = logging.getLogger(__name__)

NUM_TOKENS = 256
VOCABULARY = 16384
CLASSES = 1000
SHARD = 1024  # images in a shard
READS = 2048  # images that are read, in random order
BATCH = 256


def write_both(folder: Path, images: int) -> None:
    """Writes the same random codes in both layouts."""
    codes = np.random.default_rng(0).integers(VOCABULARY, size=(images, 1, NUM_TOKENS))  # int64
    labels = np.arange(images) % CLASSES
    for name in ("shards", "codes", "labels"):
        (folder / name).mkdir()
    for index, row in enumerate(codes):
        np.save(folder / "codes" / f"{index}.npy", row)
        np.save(folder / "labels" / f"{index}.npy", labels[index : index + 1])
    for number, start in enumerate(range(0, images, SHARD)):
        np.save(folder / "shards" / f"{number:05d}.npy", codes[start : start + SHARD].astype(np.uint16))
    np.save(folder / "labels.npy", labels)


def read_shards(folder: Path, order: np.ndarray) -> float:
    """Reads the images `order` from shards. Returns the seconds, from opening to the last batch."""
    start = time.perf_counter()
    names = sorted(path.stem for path in (folder / "shards").iterdir())
    codes = open_shards(folder, names)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        codes.take(rows, np.zeros_like(rows)).astype(np.int64)  # (B, T) of view 0
        labels[rows]
    return time.perf_counter() - start


def read_files(folder: Path, order: np.ndarray) -> float:
    """Reads the images `order` from one pair of files each. Returns the seconds."""
    start = time.perf_counter()
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        for name in ("codes", "labels"):
            np.stack([np.load(folder / name / f"{row}.npy", allow_pickle=False) for row in rows])
    return time.perf_counter() - start


READERS: dict[str, Callable[[Path, np.ndarray], float]] = {"shards": read_shards, "files": read_files}


def measure(options: Options, images: int = 8192) -> list[Row]:
    """Returns one row: both layouts of so many images, in alternating rounds."""
    order = np.random.default_rng(1).permutation(images)[:READS]
    seconds: dict[str, list[float]] = {name: [] for name in READERS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log.info(f"writing {images} images in both layouts")
        write_both(folder, images)
        for _ in range(options.rounds):
            for name, read in READERS.items():
                seconds[name].append(in_fresh_process(read, folder, order))
    ratios = [slow / fast for slow, fast in zip(seconds["files"], seconds["shards"], strict=True)]
    per_image = {name: 1e6 * spread(values)["median"] / len(order) for name, values in seconds.items()}
    row: Row = {"kind": "data", "status": "measured", "images": images, "reads": len(order)}
    return [row | {"microseconds_an_image": per_image, "files_over_shards": spread(ratios)}]
