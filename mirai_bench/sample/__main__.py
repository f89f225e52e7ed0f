"""The command `python -m mirai_bench.sample`: samples images from a run."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from mirai_bench.utils.cli import add_device, progress, run
from mirai_bench.utils.errors import UserError

log = logging.getLogger("mirai_bench.sample")

# Options that override a field of the run's own protocol, and what --help says of them.
PROTOCOL_OPTIONS: dict[str, tuple[type, str]] = {
    "seed": (int, "seed of the samples"),
    "cfg_scale": (float, "scale of classifier-free guidance; 1 is no guidance"),
    "temperature": (float, "divisor of the logits"),
    "top_k": (int, "draw from this many most probable codes; 0 means all"),
    "top_p": (float, "draw from the most probable codes that have this probability together"),
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.sample",
        description="Samples images from the newest checkpoint of a run. Options that are left out are those of the "
        "run's own evaluation protocol.",
        epilog="example: python -m mirai_bench.sample runs/a87d3a399400 --num 64 --grid out.png",
    )
    result.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    result.add_argument("--num", type=int, default=64, help="number of images, with indices 0, 1, …; default 64")
    result.add_argument(
        "--grid", type=Path, help="write a PNG with all images, ten (or the number of classes, if fewer) per row"
    )
    result.add_argument("--npz", type=Path, help="write uint8 images as arr_0 and their labels as arr_1")
    add_device(result)
    result.add_argument(
        "--batch-size", type=int, default=256, help="images at a time: speed and memory only; default 256"
    )
    for name, (kind, help) in PROTOCOL_OPTIONS.items():
        result.add_argument(f"--{name.replace('_', '-')}", type=kind, help=help)
    result.add_argument("--weights", choices=("ema", "raw"), help="the EMA, or the weights of the last step")
    return result


def command(argv: list[str]) -> None:
    """Runs the command. Prints the paths of what it wrote."""
    args = parser().parse_args(argv)
    if args.num < 1 or args.batch_size < 1:
        raise UserError(f"--num is {args.num} and --batch-size {args.batch_size}: write 1 or more")
    if not (args.grid or args.npz):
        raise UserError("nothing to write: give --grid out.png or --npz out.npz")
    changes = {}
    for name in (*PROTOCOL_OPTIONS, "weights"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    write_samples(args, changes)


def write_samples(args: argparse.Namespace, changes: dict[str, Any]) -> None:
    """Samples with the run's protocol under `changes`, and writes what the options ask for."""
    # Imported here, so that --help needs no torch.
    import numpy as np
    import torch
    from PIL import Image

    from mirai_bench.config.load import checked
    from mirai_bench.config.protocol import Protocol
    from mirai_bench.data.images.grid import image_grid
    from mirai_bench.sample.sampler import load_for_sampling, sample_images
    from mirai_bench.tracking.run_folder import RunFolder
    from mirai_bench.utils.device import resolve_device

    device = resolve_device(args.device)
    loaded = load_for_sampling(RunFolder(args.run), changes.get("weights", "ema"), device)
    protocol = checked(Protocol, loaded.config.evaluation.protocol.model_dump() | changes, "sampling")
    num_batches = -(-args.num // args.batch_size)
    batches = sample_images(
        loaded.model, loaded.tokenizer, protocol, range(args.num), batch_size=args.batch_size
    )
    parts = list(progress(batches, "sampling", total=num_batches, unit="batches"))
    images = torch.cat([images for images, _ in parts]).cpu().numpy()
    labels = torch.cat([labels for _, labels in parts]).numpy()
    if args.npz:
        np.savez(args.npz, arr_0=images, arr_1=labels)
    if args.grid:
        columns = min(10, loaded.model.classes)
        Image.fromarray(image_grid(images, columns)).save(args.grid)
    log.info(
        f"{args.num} images from step {loaded.step} ({protocol.weights} weights, CFG {protocol.cfg_scale:g}, seed "
        f"{protocol.seed})"
    )
    for path in (args.npz, args.grid):
        if path is not None:
            print(path)


if __name__ == "__main__":
    sys.exit(run(command))
