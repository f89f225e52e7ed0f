"""Encodes the images of a split into shards of codes.

One process encodes a shard and writes it whole. The processes of a machine and the ranks (RANK and
WORLD_SIZE, as torchrun sets them) share the shards, and whoever finishes last writes the manifest.
A preparation that is started again continues with the shards that are missing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import encode_bases
from mirai_bench.data.images.crops import base_sizes, center_crop
from mirai_bench.data.images.datasets import Dataset, Split, open_dataset
from mirai_bench.data.images.decoding import UNREADABLE
from mirai_bench.data.shards import check_fields, expected, is_intact, read_part, split_data, write_array
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import resolve_device
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json
from mirai_bench.utils.hashing import digest, file_sha256
from mirai_bench.utils.log import configure_logging
from mirai_bench.utils.plugins import Plugin, load, loaded

log = logging.getLogger(__name__)

# Images that are encoded together. It bounds the memory of their crops.
CHUNK = 64
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
        """Tells whether a shard is written, and its codes are as they were."""
        try:
            sha256 = read_part(self.file(number, ".json"))["sha256"][".npy"]
        except (UserError, KeyError, TypeError):  # not written, damaged, or of an earlier version
            return False
        return is_intact(self.file(number, ".npy"), sha256)


# ---- one shard


class Worker:
    """Encodes shards. Each process has one."""

    def __init__(self, job: Job, number: int) -> None:
        """`number` counts the processes that this command has started."""
        torch.set_num_threads(job.config.machine.threads)
        self.job = job
        self.data = split_data(job.config.data, job.split)
        self.device = worker_device(job.config.machine.device, number)
        self.tokenizer = load_tokenizer(job.config, self.device)

    def encode(self, shard: Shard) -> int:
        """Writes a shard and returns its number of images."""
        number, images = shard
        job = self.job
        kept: list[int] = []  # rows of the data set
        skipped: list[dict[str, str]] = []
        # The empty arrays are for a shard of which no image can be read.
        codes = [np.empty((0, self.data.num_views, job.config.num_tokens), np.uint16)]
        sides = base_sizes(self.data) if job.pixels else ()
        bases = [[np.empty((0, side, side, 3), np.uint8)] for side in sides]
        for start in range(0, len(images), CHUNK):
            readable, crops = self._read(images, range(len(images))[start : start + CHUNK], skipped)
            if readable:
                kept += [number * job.shard_size + row for row in readable]
                codes.append(encode_bases(crops, self.data, self.tokenizer, self.device))
                for base, crop in zip(bases, crops, strict=False):
                    base.append(crop)
        arrays = {".npy": codes} | {f".base{i}.npy": base for i, base in enumerate(bases)}
        for ending, parts in arrays.items():
            write_array(job.file(number, ending), np.concatenate(parts))
        hashes = {ending: file_sha256(job.file(number, ending)) for ending in arrays}
        # Written last: it marks the shard as complete.
        write_json(job.file(number, ".json"), {"rows": kept, "skipped": skipped, "sha256": hashes})
        return len(images)

    def _read(
        self, images: Dataset, rows: range, skipped: list[dict[str, str]]
    ) -> tuple[list[int], list[np.ndarray]]:
        """Returns the rows that can be read, and their bases.

        The bases are uint8 (n, S, S, 3), one array per crop range. The other images are added to
        `skipped`. Raises UserError for one that must not be skipped.
        """
        readable = []
        crops = []
        for row in rows:
            try:
                image = images.read(row)
                crops.append([center_crop(image, side) for side in base_sizes(self.data)])
                readable.append(row)
            except UNREADABLE as error:
                name = images.files[row]  # images in memory can always be read
                # An error of the system is the disk's fault, not the image's.
                if isinstance(error, OSError) and error.errno is not None:
                    advice = "run the same command again when it can, to resume"
                    raise UserError(f"{name} could not be opened ({error}): {advice}") from None
                if self.job.strict:
                    raise UserError(f"{name} cannot be read ({error}): {REPAIR}") from None
                log.warning(f"skipped {name}: {error}")
                skipped.append({"image": name, "reason": f"{type(error).__name__}: {error}"})
        return readable, [np.stack(bases) for bases in zip(*crops, strict=True)]


def worker_device(name: str, number: int) -> torch.device:
    """Returns the device of process `number`. They take the GPUs in turn, LOCAL_RANK's first."""
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    return resolve_device(f"cuda:{(device.index + number) % torch.cuda.device_count()}")


# ---- many shards


def encode_shards(job: Job, shards: Sequence[Shard], processes: int) -> Iterator[int]:
    """Encodes the shards, and yields the number of images of each one when it is written."""
    if processes == 1:
        yield from map(Worker(job, 0).encode, shards)
        return
    spawn = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    start = (job, spawn.Value("i", 0), loaded())
    with ProcessPoolExecutor(processes, spawn, _start_worker, start) as pool:
        try:
            # After an error or Ctrl-C only the shards that are being encoded are finished.
            yield from pool.map(_encode, shards)
        except BrokenProcessPool:
            advice = "run the same command with fewer --processes, to resume"
            raise UserError(f"A process was killed (out of memory?): {advice}") from None


_worker: list[Worker] = []  # the worker of this process of a pool


def _start_worker(job: Job, counter: Any, plugins: Sequence[Plugin]) -> None:
    configure_logging()
    load(plugins)
    Thread(target=_exit_with_parent, daemon=True).start()
    with counter.get_lock():  # the processes of the pool share the counter
        number = counter.value
        counter.value += 1
    _worker.append(Worker(job, number))


def _exit_with_parent() -> None:
    """Ends this process with its parent, from which it would otherwise wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process of a pool has one"
    parent.join()
    os._exit(1)  # sys.exit would end this thread only


def _encode(shard: Shard) -> int:
    return _worker[0].encode(shard)


# ---- the preparation


def prepare(job: Job, processes: int, rank: int, world: int) -> dict[str, Any] | None:
    """Encodes this rank's shards of a split.

    Returns the manifest, or None if other ranks are still at work: the last one writes it.
    """
    dataset = open_dataset(job.config, job.split)
    size = job.shard_size
    _begin(job, dataset)
    # 1. Encode those of this rank's shards that are missing.
    rows = range(len(dataset))
    starts = rows[::size]
    shards = [(i, dataset.part(rows[start : start + size])) for i, start in enumerate(starts)]
    mine = shards[rank::world]
    missing = [(i, images) for i, images in mine if not job.is_complete(i)]
    if missing:
        total = sum(len(images) for _, images in mine)
        left = sum(len(images) for _, images in missing)
        done = f"; {total - left:,} are done" if left < total else ""
        log.info(f"encoding {job.split}: {left:,} images{done}")
        encoded = encode_shards(job, missing, min(processes, len(missing)))
        what = f"encoding {job.split}"
        for _ in progress(encoded, what, total, "images", total - left, weigh=int):
            pass
    # 2. Write the manifest, if no shard of any rank is missing.
    complete = all(job.is_complete(i) for i, _ in shards)
    return _finish(job, dataset, len(shards)) if complete else None


def _begin(job: Job, dataset: Dataset) -> None:
    """Writes the plan. Raises UserError if something else was begun in this folder."""
    plan = expected(job.config, job.split)
    plan |= {"dataset": dataset.identity, "pixels": job.pixels, "shard_size": job.shard_size}
    file = job.folder / "plan.json"
    if file.is_file():
        advice = "this folder was begun with other settings; remove it, or set machine.codes to another"
        check_fields(file, read_part(file), plan, advice)
    (job.folder / "shards").mkdir(parents=True, exist_ok=True)
    write_json(file, plan)


def _finish(job: Job, dataset: Dataset, num_shards: int) -> dict[str, Any]:
    """Writes labels, rows and the manifest, and returns the manifest."""
    # 1. What the shards hold. Temporary files were left by processes that were killed.
    for abandoned in (job.folder / "shards").glob("*.tmp"):
        abandoned.unlink(missing_ok=True)
    shards = [read_part(job.file(i, ".json")) for i in range(num_shards)]
    rows = np.array([row for shard in shards for row in shard["rows"]], np.int64)
    skipped = [image for shard in shards for image in shard["skipped"]]
    if not len(rows):
        where = job.config.machine.data
        advice = "write the path of another folder"
        raise UserError(f"None of the {len(dataset)} images of {where} could be read: {advice}")
    if skipped and job.strict:
        example = skipped[0]["image"]
        raise UserError(f"{len(skipped)} images were skipped before, such as {example}: {REPAIR}")
    # 2. The manifest comes last: it marks the split as complete.
    write_array(job.folder / "rows.npy", rows)
    write_array(job.folder / "labels.npy", dataset.labels[rows])
    manifest = read_part(job.folder / "plan.json")
    manifest["num_images"] = len(rows)
    manifest["skipped"] = skipped
    manifest["left_out"] = dataset.left_out
    manifest["empty_classes"] = list(dataset.empty)
    manifest["class_names"] = list(dataset.class_names)
    manifest["shards"] = [f"{i:05d}" for i in range(num_shards)]
    hashes = {name: file_sha256(job.folder / name) for name in ("rows.npy", "labels.npy")}
    for i, shard in enumerate(shards):
        hashes |= {f"shards/{i:05d}{ending}": sha256 for ending, sha256 in shard["sha256"].items()}
    manifest["sha256"] = hashes
    write_json(job.folder / "manifest.json", manifest | {"digest": digest(manifest)})
    return manifest
