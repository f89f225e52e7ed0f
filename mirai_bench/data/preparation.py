"""Encodes the images of a split into shards of codes.

One process encodes a shard and writes it whole. The processes of a machine and the ranks (RANK and WORLD_SIZE, as
torchrun sets them) share the shards, and whoever finishes last writes the manifest. A preparation that is started again
continues with the shards that are missing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from PIL import Image

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import encode_bases
from mirai_bench.data.images.crops import base_sizes, center_crop
from mirai_bench.data.images.datasets import Dataset, Split, open_dataset
from mirai_bench.data.shards import check_fields, expected, read_json, split_data, write_array
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import resolve_device
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json
from mirai_bench.utils.log import configure_logging

log = logging.getLogger(__name__)

# Images that are encoded together. It bounds the memory of their crops.
CHUNK = 64
# What reading a corrupt image may raise.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
REPAIR = "repair or remove it and prepare into a new folder, or leave out --strict"

Shard = tuple[int, Dataset]  # its number, and its images


@dataclass(frozen=True)
class Job:
    """The preparation of one split, as every process knows it."""

    config: RunConfig
    """The configuration, whose data and tokenizer are used."""
    split: Split
    """The split."""
    folder: Path
    """Folder that the codes are written to."""
    pixels: bool
    """Whether the cropped images are stored too."""
    strict: bool
    """Whether an image that cannot be read ends the preparation."""
    shard_size: int
    """Number of images per shard."""

    def file(self, number: int, ending: str) -> Path:
        """Returns the path of a file of a shard."""
        return self.folder / "shards" / f"{number:05d}{ending}"

    def is_complete(self, number: int) -> bool:
        """Tells whether a shard is written."""
        return self.file(number, ".json").is_file()


# ---- one shard


class Worker:
    """Encodes shards. Each process has one."""

    def __init__(self, job: Job, number: int) -> None:
        """`number` counts the processes of this machine or, with several ranks, those of one rank."""
        torch.set_num_threads(job.config.machine.threads)
        self.job = job
        self.data = split_data(job.config.data, job.split)
        self.device = worker_device(job.config.machine.device, number)
        self.tokenizer = load_tokenizer(job.config.tokenizer, self.device)

    def shard(self, number: int, images: Dataset) -> int:
        """Writes shard `number`, which consists of these images, and returns the number of images."""
        job = self.job
        kept: list[int] = []  # rows of the data set
        skipped: list[dict[str, str]] = []
        # The empty arrays are for a shard of which no image can be read.
        codes = [np.empty((0, self.data.num_views, job.config.num_tokens), np.uint16)]
        bases = [[np.empty((0, side, side, 3), np.uint8)] for side in base_sizes(self.data)]
        for start in range(0, len(images), CHUNK):
            rows = range(start, min(start + CHUNK, len(images)))
            readable, arrays = self._read(images, rows, skipped)
            if not readable:
                continue
            kept += [number * job.shard_size + row for row in readable]
            codes.append(encode_bases(arrays, self.data, self.tokenizer, self.device))
            if job.pixels:
                for base, array in zip(bases, arrays, strict=True):
                    base.append(array)
        write_array(job.file(number, ".npy"), np.concatenate(codes))
        if job.pixels:
            for i, base in enumerate(bases):
                write_array(job.file(number, f".base{i}.npy"), np.concatenate(base))
        write_json(job.file(number, ".json"), {"rows": kept, "skipped": skipped})
        return len(images)

    def _read(
        self, images: Dataset, rows: range, skipped: list[dict[str, str]]
    ) -> tuple[list[int], list[np.ndarray]]:
        """Returns the rows that can be read and their bases uint8 (n, S, S, 3), one array per crop range.

        The other images are added to `skipped`.
        """
        readable = []
        crops = []
        for row in rows:
            try:
                image = images.read(row)
                crops.append([center_crop(image, side) for side in base_sizes(self.data)])
                readable.append(row)
            except UNREADABLE as error:
                skipped.append(self._skip(images.describe(row), error))
        return readable, [np.stack(bases) for bases in zip(*crops, strict=True)]

    def _skip(self, name: str, error: Exception) -> dict[str, str]:
        """Returns what the manifest says about an image that cannot be read. Raises UserError if it is not skipped."""
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the image's
            raise UserError(
                f"{name} could not be opened ({error}): run the same command again when it can, to resume"
            ) from None
        if self.job.strict:
            raise UserError(f"{name} cannot be read ({error}): {REPAIR}") from None
        log.warning(f"skipped {name}: {error}")
        return {"image": name, "reason": f"{type(error).__name__}: {error}"}


def worker_device(name: str, number: int) -> torch.device:
    """Returns the device of process `number`: the processes take the GPUs in turn, from that of LOCAL_RANK on."""
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    return resolve_device(f"cuda:{(device.index + number) % torch.cuda.device_count()}")


# ---- many shards


def encode_shards(job: Job, shards: Iterable[Shard], processes: int) -> Iterator[int]:
    """Encodes the shards. Yields the number of images of each one when it is written."""
    if processes == 1:
        worker = Worker(job, 0)
        for number, images in shards:
            yield worker.shard(number, images)
        return
    spawn = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    with ProcessPoolExecutor(processes, spawn, _start_worker, (job, spawn.Value("i", 0))) as pool:
        futures = [pool.submit(_encode_shard, number, images) for number, images in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "A process was killed (out of memory?): run the same command with fewer --processes, to resume"
            ) from None
        finally:
            # After an error or Ctrl-C the shards that are being encoded are finished, the others are left.
            pool.shutdown(cancel_futures=True)


_worker: list[Worker] = []  # the worker of this process of a pool


def _start_worker(job: Job, counter: Any) -> None:
    configure_logging()
    Thread(target=_exit_with_parent, daemon=True).start()
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    _worker.append(Worker(job, number))


def _exit_with_parent() -> None:
    """Ends this process with its parent. It would wait forever for work from a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process of a pool has one"
    parent.join()
    os._exit(1)


def _encode_shard(number: int, images: Dataset) -> int:
    return _worker[0].shard(number, images)


# ---- the preparation


def prepare(job: Job, processes: int, rank: int, world: int) -> dict[str, Any] | None:
    """Encodes this rank's shards of a split.

    Returns the manifest, or None if other ranks are still at work: the last one writes it.
    """
    dataset = open_dataset(job.config, job.split)
    size = job.shard_size
    num_shards = -(-len(dataset) // size)
    _begin(job, dataset)
    # 1. Encode those of this rank's shards that are missing.
    missing = []
    done = 0  # images of this rank that an earlier command encoded
    left = 0
    for number in range(rank, num_shards, world):
        images = dataset.part(range(number * size, min((number + 1) * size, len(dataset))))
        if job.is_complete(number):
            done += len(images)
        else:
            left += len(images)
            missing.append((number, images))
    if missing:
        what = f"encoding {job.split}"
        log.info(f"{what}: {left:,} images" + (f"; {done:,} are done" if done else ""))
        encoded = encode_shards(job, missing, min(processes, len(missing)))
        for _ in progress(encoded, what, done + left, "images", done, weigh=int):
            pass
    # 2. Write the manifest, if no shard of any rank is missing.
    if not all(job.is_complete(number) for number in range(num_shards)):
        return None
    return _finish(job, dataset, num_shards)


def _begin(job: Job, dataset: Dataset) -> None:
    """Writes what is being prepared. Raises UserError if something else was begun in this folder."""
    plan = expected(job.config, job.split)
    plan["dataset"] = dataset.identity
    plan["pixels"] = job.pixels
    plan["shard_size"] = job.shard_size
    (job.folder / "shards").mkdir(parents=True, exist_ok=True)
    file = job.folder / "plan.json"
    if not file.is_file():
        write_json(file, plan)
        return
    advice = "something else was begun in this folder; remove it, or set machine.codes to another"
    check_fields(file, read_json(file), plan, advice)


def _finish(job: Job, dataset: Dataset, num_shards: int) -> dict[str, Any]:
    """Writes labels, rows and the manifest, and returns the manifest."""
    # 1. What the shards hold. Temporary files were left by processes that were killed.
    rows_kept = []
    skipped = []
    for number in range(num_shards):
        shard = read_json(job.file(number, ".json"))
        rows_kept += shard["rows"]
        skipped += shard["skipped"]
    for abandoned in (job.folder / "shards").glob("*.tmp"):
        abandoned.unlink(missing_ok=True)
    if not rows_kept:
        raise UserError(
            f"None of the {len(dataset)} images of {job.config.machine.data} could be read: write the path of another "
            "folder"
        )
    if skipped and job.strict:
        raise UserError(f"{len(skipped)} images were skipped before, such as {skipped[0]['image']}: {REPAIR}")
    # 2. The manifest comes last: it marks the split as complete.
    rows = np.array(rows_kept, np.int64)
    write_array(job.folder / "rows.npy", rows)
    write_array(job.folder / "labels.npy", dataset.labels[rows])
    manifest = read_json(job.folder / "plan.json") | {
        "num_images": len(rows),
        "skipped": skipped,
        "class_names": list(dataset.class_names),
        "shards": [f"{number:05d}" for number in range(num_shards)],
    }
    write_json(job.folder / "manifest.json", manifest)
    return manifest
