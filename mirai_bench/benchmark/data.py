"""`benchmark data`: random access to the codes, as prepared shards and as one pair of .npy files an image, each in a fresh Python process.

The official layout: int64 codes (1, T) and a label (1,) in files of their own. Files are written just before, so both come from the
page cache: what is compared is the cost of the layout, not of the disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.timing import spread
from mirai_bench.data.shards import open_shards
from mirai_bench.utils.cli import say
from mirai_bench.utils.files import write_array

TOKENS = 256


VOCABULARY = 16384


SHARD = 1024


READS = 2048  # images, in random order, in batches of


BATCH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=8192, help="that are written (default: 8192)")


def write_both(folder: Path, images: int) -> list[str]:
    """→ names of the shards."""
    codes = np.random.default_rng(0).integers(VOCABULARY, size=(images, 1, TOKENS))
    for name in ("shards", "codes", "labels"):
        (folder / name).mkdir()
    for index, row in enumerate(codes):
        np.save(folder / "codes" / f"{index}.npy", row)
        np.save(folder / "labels" / f"{index}.npy", np.array([index % 1000]))
    names = [f"{start // SHARD:05d}" for start in range(0, images, SHARD)]
    for name, start in zip(names, range(0, images, SHARD), strict=True):
        write_array(folder / "shards" / f"{name}.npy", codes[start : start + SHARD].astype(np.uint16))
    write_array(folder / "labels.npy", np.arange(images) % 1000)
    return names


def read_shards(folder: Path, names: list[str], order: np.ndarray) -> float:
    """Seconds from the opening to the last batch."""
    start = time.perf_counter()
    codes, labels = open_shards(folder, names), np.load(folder / "labels.npy", allow_pickle=False)
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        codes.take(rows, np.zeros_like(rows)).astype(np.int64)
        labels[rows]
    return time.perf_counter() - start


def read_files(folder: Path, names: list[str], order: np.ndarray) -> float:
    start = time.perf_counter()
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        np.stack([np.load(folder / "codes" / f"{row}.npy", allow_pickle=False) for row in rows])
        np.stack([np.load(folder / "labels" / f"{row}.npy", allow_pickle=False) for row in rows])
    return time.perf_counter() - start


def measure(args: argparse.Namespace, options: Options) -> list[dict[str, Any]]:
    order = np.random.default_rng(1).permutation(args.images)[:READS]
    spawn = multiprocessing.get_context("spawn")
    times: dict[str, list[float]] = {"shards": [], "files": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say(f"writing {args.images} images in both layouts")
        names = write_both(folder, args.images)
        for _ in range(options.rounds):
            for kind, read in (("shards", read_shards), ("files", read_files)):
                with spawn.Pool(1) as fresh:
                    times[kind].append(fresh.apply(read, (folder, names, order)))
    ratios = spread([slow / fast for slow, fast in zip(times["files"], times["shards"], strict=True)])
    microseconds = {kind: 1e6 * spread(values)["median"] / len(order) for kind, values in times.items()}
    return [
        {
            "kind": "data", "status": "measured", "images": args.images, "reads": len(order), "microseconds_an_image": microseconds,
            "files_over_shards": ratios,
        }
    ]  # fmt: skip
