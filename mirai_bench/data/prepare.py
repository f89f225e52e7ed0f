"""python -m mirai_bench.data.prepare: images → codes, once. Run the same command again after an interruption: it goes on.

The images of a split are cut into shards; a shard is encoded by one process and written whole. Processes (--processes) and ranks
(RANK and WORLD_SIZE, as torchrun sets them) share the shards out; whoever finishes last writes the manifest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import struct
import sys
import time
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

from mirai_bench.config.load import load_run
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import encode_bases
from mirai_bench.data.images.crops import base_sizes, center_crop
from mirai_bench.data.images.datasets import Dataset, Split, has_heldout_images, open_dataset
from mirai_bench.data.shards import codes_folder, expected, refuse_difference, split_data
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.utils.cli import progress, run, say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import read_json, write_array, write_json

SHARD = 1024  # images


REPAIR = "repair or remove it and prepare into a new folder, or leave out --strict"


ENCODED_TOGETHER = 64  # images: bounds the memory of their crops


UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Job:
    """The preparation of one split, as every process knows it."""

    config: RunConfig
    split: Split
    folder: Path
    pixels: bool
    strict: bool
    shard_size: int


class Worker:
    """Encodes shards; one in each process."""

    def __init__(self, job: Job, device: torch.device) -> None:
        torch.set_num_threads(job.config.machine.threads)
        self.job, self.device = job, device
        self.data = split_data(job.config, job.split).data
        self.tokenizer = load_tokenizer(job.config.tokenizer, device)

    def shard(self, number: int, images: Dataset) -> int:
        """Writes shard `number`, which is made of `images` → how many they are."""
        kept: list[int] = []
        skipped: list[dict[str, str]] = []
        codes = [
            np.empty((0, self.data.num_views, self.job.config.grid[0] * self.job.config.grid[1]), np.uint16)
        ]
        bases = [[np.empty((0, side, side, 3), np.uint8)] for side in base_sizes(self.data)]
        for start in range(0, len(images), ENCODED_TOGETHER):
            good, arrays = self.read(
                images, range(start, min(start + ENCODED_TOGETHER, len(images))), skipped
            )
            if good:
                kept += [number * self.job.shard_size + row for row in good]
                codes.append(encode_bases(arrays, self.data, self.tokenizer, self.device))
                for held, array in zip(bases, arrays, strict=True):
                    held += [array] if self.job.pixels else []
        name = f"{self.job.folder}/shards/{number:05d}"
        write_array(Path(f"{name}.npy"), np.concatenate(codes))
        for i, held in enumerate(bases if self.job.pixels else ()):
            write_array(Path(f"{name}.base{i}.npy"), np.concatenate(held))
        write_json(Path(f"{name}.json"), {"rows": kept, "skipped": skipped})
        return len(images)

    def read(
        self, images: Dataset, rows: range, skipped: list[dict[str, str]]
    ) -> tuple[list[int], list[np.ndarray]]:
        """(rows that can be read, their bases uint8 (n, S, S, 3) for each crop range); the others are added to `skipped`."""
        good, crops = [], []
        for row in rows:
            try:
                image = images.read(row)
                crops.append([center_crop(image, side) for side in base_sizes(self.data)])
                good.append(row)
            except UNREADABLE as error:
                name = images.describe(row)
                if (
                    isinstance(error, OSError) and error.errno is not None
                ):  # the disk's fault, not the image's
                    raise UserError(
                        f"{name} could not be opened ({error}): run the same command again when it can, it goes on"
                    ) from None
                if self.job.strict:
                    raise UserError(f"{name} cannot be read ({error}): {REPAIR}") from None
                say(f"skipped {name}: {error}")
                skipped.append({"image": name, "reason": f"{type(error).__name__}: {error}"})
        return good, [np.stack(side) for side in zip(*crops, strict=True)]


_worker: list[Worker] = []  # of a pool's process


def _end_with_parent() -> None:
    """A pool's process would wait for ever for work from a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a pool's process has one"
    parent.join()
    os._exit(1)


def _start_worker(job: Job, counter: Any) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    _worker.append(Worker(job, pick_device(job.config, number)))


def _encode_shard(number: int, images: Dataset) -> int:
    return _worker[0].shard(number, images)


def pick_device(config: RunConfig, number: int) -> torch.device:
    """Processes take the GPUs in turn."""
    name = config.machine.device
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", (int(os.environ.get("LOCAL_RANK", 0)) + number) % torch.cuda.device_count())


def encoded(job: Job, shards: Iterable[tuple[int, Dataset]], processes: int) -> Iterator[int]:
    """Encodes the shards; yields each one's number of images once it is written."""
    if processes == 1:
        worker = Worker(job, pick_device(job.config, 0))
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
                "A process ended by itself (out of memory?): run the same command with fewer --processes, it goes on"
            ) from None
        finally:
            pool.shutdown(
                cancel_futures=True
            )  # an error or Ctrl-C: shards in work are finished, the others are left


def begin(job: Job, dataset: Dataset) -> list[str]:
    """Writes the plan, or checks that it is the one that was begun here → names of all shards."""
    plan = expected(job.config, job.split) | {
        "dataset": dataset.identity,
        "pixels": job.pixels,
        "shard_size": job.shard_size,
    }
    (job.folder / "shards").mkdir(parents=True, exist_ok=True)
    if (job.folder / "plan.json").is_file():
        advice = "something else was begun in this folder; remove it, or set machine.codes to another"
        refuse_difference(job.folder / "plan.json", read_json(job.folder / "plan.json"), plan, advice)
    else:
        write_json(job.folder / "plan.json", plan)
    return [f"{number:05d}" for number in range(-(-len(dataset) // job.shard_size))]


def finish(job: Job, dataset: Dataset, names: list[str]) -> dict[str, Any]:
    """Writes labels, rows and manifest → manifest."""
    done = [read_json(job.folder / "shards" / f"{name}.json") for name in names]
    rows = np.array([row for shard in done for row in shard["rows"]], np.int64)
    if not len(rows):
        raise UserError(
            f"None of the {len(dataset)} images of {job.config.machine.data} could be read: write the path of another folder"
        )
    for abandoned in (job.folder / "shards").glob("*.tmp"):  # by processes that were killed
        abandoned.unlink(missing_ok=True)
    skipped = [image for shard in done for image in shard["skipped"]]
    if skipped and job.strict:
        raise UserError(f"{len(skipped)} images were skipped before, such as {skipped[0]['image']}: {REPAIR}")
    write_array(job.folder / "rows.npy", rows)
    write_array(job.folder / "labels.npy", dataset.labels[rows])
    manifest = read_json(job.folder / "plan.json") | {
        "num_images": len(rows),
        "skipped": skipped,
        "class_names": list(dataset.class_names),
        "shards": names,
    }
    write_json(job.folder / "manifest.json", manifest)
    return manifest


def prepare(job: Job, processes: int, rank: int, world: int) -> dict[str, Any] | None:
    """→ the manifest, or None where other ranks are still at work."""
    dataset = open_dataset(job.config, job.split)
    names, size = begin(job, dataset), job.shard_size
    mine = [
        (i, dataset.part(range(i * size, min((i + 1) * size, len(dataset)))))
        for i in range(rank, len(names), world)
    ]
    shards = [(i, part) for i, part in mine if not (job.folder / "shards" / f"{names[i]}.json").is_file()]
    if shards:
        images, left = (sum(len(part) for _, part in some) for some in (mine, shards))
        say(
            f"encoding {job.split}: {left:,} images"
            + (f"; {images - left:,} are done" if left < images else "")
        )
        work = encoded(job, shards, min(processes, len(shards)))
        for _ in progress(work, f"encoding {job.split}", images, "images", images - left, weigh=int):
            pass
    if not all((job.folder / "shards" / f"{name}.json").is_file() for name in names):
        return None
    return finish(job, dataset, names)


EXAMPLES = """examples:
  python -m mirai_bench.data.prepare cifar10 --data cifar10.npz
  python -m mirai_bench.data.prepare imagenet256_b --data IMAGENET --set tokenizer.weights=vq_ds16_c2i.pt --processes 16
  torchrun --nproc-per-node 8 -m mirai_bench.data.prepare imagenet256_b --data IMAGENET --set tokenizer.weights=vq_ds16_c2i.pt

IMAGENET holds train/class/image and, for held-out losses, val/class/image. Any folder of class/image will do."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m mirai_bench.data.prepare",
        description="Images to codes, once. Run the same command again after an interruption: it goes on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("config", type=Path, help="a run file or the name of a profile")
    top.add_argument("--data", type=Path, help="images: a file or folder (machine.data)")
    top.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a field of the config")
    top.add_argument(
        "--strict",
        action="store_true",
        help="end at the first image that cannot be read, instead of skipping it",
    )
    top.add_argument(
        "--pixels",
        action="store_true",
        help="also store the cropped training images, for teachers that look at pixels (ImageNet: 303 GB)",
    )
    top.add_argument(
        "--processes", type=int, default=1, metavar="N", help="on this machine; they take its GPUs in turn"
    )
    top.add_argument(
        "--shard-size", type=int, default=SHARD, metavar="N", help=f"images in a file (default {SHARD})"
    )
    return top


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    config = load_run(
        args.config,
        [*args.set, *([f"machine.data={json.dumps(str(args.data.absolute()))}"] if args.data else [])],
    )
    if config.data.dataset == "digits":
        raise UserError("The digits are encoded when they are used: there is nothing to prepare")
    if args.processes < 1 or args.shard_size < 1:
        raise UserError(
            f"--processes is {args.processes} and --shard-size {args.shard_size}: write 1 or more"
        )
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    splits: list[Split] = ["train", *(["heldout"] if has_heldout_images(config) else [])]
    for split in splits:
        began = time.monotonic()
        job = Job(
            config,
            split,
            codes_folder(config) / split,
            args.pixels and split == "train",
            args.strict,
            args.shard_size,
        )
        manifest = prepare(job, args.processes, rank, world)
        if manifest is None:
            say(f"{split}: this rank's shards are written, other ranks are still at work")
            continue
        shown = {
            "split": split,
            "folder": str(job.folder),
            "images": manifest["num_images"],
            "views": manifest["views"],
        }
        print(
            json.dumps(
                shown | {"skipped": len(manifest["skipped"]), "seconds": round(time.monotonic() - began, 1)}
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
