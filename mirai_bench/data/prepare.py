"""The command `python -m mirai_bench.data.prepare`: encodes images, once."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Literal

from mirai_bench.config.load import load_run
from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.cli import add_config, run
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)

# Images per file. A shard is what an interrupted preparation loses.
SHARD_SIZE = 1024
SPLITS: tuple[Literal["train"], Literal["heldout"]] = ("train", "heldout")

EPILOG = """examples:
  python -m mirai_bench.data.prepare cifar10 --data cifar10.npz
  python -m mirai_bench.data.prepare fashion_mnist --data FOLDER
  python -m mirai_bench.data.prepare imagenet256_b --data IMAGENET --set tokenizer.weights=vq_ds16_c2i.pt
  torchrun --nproc-per-node 8 -m mirai_bench.data.prepare imagenet256_b --data IMAGENET …

IMAGENET holds train/class/image and, for held-out losses, val/class/image. Any folder of
class/image will do."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.data.prepare",
        description="Encodes images, once. The same command again resumes after an interruption.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(result)
    result.add_argument("--data", type=Path, help="the images: a file or folder (machine.data)")
    result.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    result.add_argument("--check", action="store_true", help="only compare what is prepared with its hashes")
    result.add_argument(
        "--pixels", action="store_true", help="also store the cropped images, for teachers that see pixels"
    )
    result.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes on this machine; they share its GPUs"
    )
    result.add_argument(
        "--shard-size", type=int, default=SHARD_SIZE, metavar="N", help="images per file; default %(default)s"
    )
    return result


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints one line of JSON per split."""
    args = parser().parse_args(argv)
    settings = args.settings
    if args.data is not None:
        settings = [*settings, f"machine.data={json.dumps(str(args.data.expanduser().absolute()))}"]
    config = load_run(args.config, settings)
    if not config.data.needs_preparation:
        name = config.data.dataset
        raise UserError(f"The images of {name} are encoded when they are used: there is nothing to prepare")
    if args.processes < 1 or args.shard_size < 1:
        raise UserError(
            f"--processes is {args.processes} and --shard-size {args.shard_size}: write 1 or more"
        )
    # Imported here, so that --help and wrong configs need no torch.
    from mirai_bench.data.images.datasets import has_heldout_images
    from mirai_bench.data.preparation import Job, prepare
    from mirai_bench.data.shards import codes_folder
    from mirai_bench.utils.distributed import announced

    if args.check:
        return check(config)
    rank, world = announced()
    for split in SPLITS if has_heldout_images(config) else SPLITS[:1]:
        start = time.monotonic()
        folder = codes_folder(config) / split
        pixels = args.pixels and split == "train"
        job = Job(config, split, folder, pixels, args.strict, args.shard_size)
        manifest = prepare(job, args.processes, rank, world)
        if manifest is None:
            log.info(f"{split}: this rank's shards are written, other ranks are still at work")
            continue
        summary = {
            "split": split,
            "folder": str(folder),
            "images": manifest["num_images"],
            "views": manifest["views"],
            "skipped": len(manifest["skipped"]),
            "left_out": manifest["left_out"],
            "empty_classes": manifest["empty_classes"],
            "seconds": round(time.monotonic() - start, 1),
        }
        print(json.dumps(summary))
    return 0


def check(config: RunConfig) -> int:
    """Compares all prepared files with their hashes, and prints a line of JSON per split.

    Raises UserError if one is damaged.
    """
    from mirai_bench.data.shards import check_intact, codes_folder, read_manifest

    for split in SPLITS:
        if split == "heldout" and not (codes_folder(config) / split).is_dir():
            continue
        folder, manifest = read_manifest(config, split)
        files = manifest.get("sha256", {})
        check_intact(folder, manifest, files)
        print(json.dumps({"split": split, "folder": str(folder), "intact": len(files)}))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
