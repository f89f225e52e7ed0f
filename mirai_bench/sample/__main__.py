"""TODO: sample.__main__."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from mirai_bench.config.protocol import Protocol
from mirai_bench.data.images.grid import image_grid
from mirai_bench.sample.sampler import load_for_sampling, sample_images
from mirai_bench.utils.cli import progress, run, say
from mirai_bench.utils.errors import UserError


def command(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.sample",
        description="Samples images from the newest checkpoint of a run.",
        epilog="example: python -m mirai_bench.sample runs/a87d3a399400 --num 64 --grid out.png",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--num", type=int, default=64, help="number of images, of indices 0, 1, …")
    parser.add_argument(
        "--grid", type=Path, help="PNG with all images, ten (or the number of classes, if fewer) a row"
    )
    parser.add_argument("--npz", type=Path, help="uint8 images as arr_0, labels as arr_1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=256, help="speed and memory only")
    for name in ("seed", "top-k"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("cfg-scale", "temperature", "top-p"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--weights", choices=("ema", "raw"))
    args = parser.parse_args(argv)
    if args.num < 1 or args.batch_size < 1:
        raise UserError(f"--num is {args.num} and --batch-size {args.batch_size}: write 1 or more")
    if not (args.grid or args.npz):
        raise UserError("nothing to write: give --grid out.png or --npz out.npz")
    names = ("seed", "top_k", "cfg_scale", "temperature", "top_p", "weights")
    write_samples(args, {name: getattr(args, name) for name in names if getattr(args, name) is not None})


def write_samples(args: argparse.Namespace, changes: dict[str, object]) -> None:
    from PIL import Image

    from mirai_bench.config.load import checked

    config, model, tokenizer, step = load_for_sampling(
        args.run, str(changes.get("weights", "ema")), torch.device(args.device)
    )
    protocol = checked(Protocol, config.evaluation.protocol.model_dump() | changes, "sampling")
    batches = sample_images(model, tokenizer, protocol, range(args.num), batch_size=args.batch_size)
    parts = list(progress(batches, "sampling", total=-(-args.num // args.batch_size), unit="batches"))
    images = torch.cat([images for images, _ in parts]).cpu().numpy()
    if args.npz:
        np.savez(args.npz, arr_0=images, arr_1=torch.cat([labels for _, labels in parts]).numpy())
    if args.grid:
        Image.fromarray(image_grid(images, min(10, model.classes))).save(args.grid)
    say(
        f"{args.num} images from step {step} ({protocol.weights} weights, CFG {protocol.cfg_scale:g}, seed {protocol.seed})"
    )
    print("\n".join(str(path) for path in (args.npz, args.grid) if path))


if __name__ == "__main__":
    sys.exit(run(command))
