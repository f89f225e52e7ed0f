"""python -m mirai_bench.tokenizer train: makes the weights of vq_small."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

import torch

from ..cli import run
from ..compose import load_run
from ..errors import UserError
from .train import Recipe, summary, train

EXAMPLE = """example:
  python -m mirai_bench.tokenizer train cifar10 --vgg vgg16_features.pt --set machine.data=cifar10.npz --epochs 12

The weights and their record (PSNR, codebook usage, seconds, hardware) are written below runs/tokenizers. Run the same command again after an
interruption: it goes on. Use the weights with tokenizer.weights: PATH."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m mirai_bench.tokenizer", description=__doc__)
    train_ = top.add_subparsers(dest="command", required=True).add_parser(
        "train", epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train_.add_argument("config", type=Path, help="a run file or the name of a profile: its data, down-sampling and vocabulary")
    train_.add_argument("--vgg", type=Path, required=True, help="state dict of torchvision's VGG16 .features (perceptual loss)")
    train_.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a field of the config")
    train_.add_argument(
        "--reconstructions", type=Path, help="write held-out images and their reconstructions to this .npz (for rFID)"
    )
    for field in fields(Recipe):
        kind = type(field.default)
        train_.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=f"default {field.default}"
        )
    return top


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    config = load_run(args.config, args.set)
    if config.tokenizer.name != "vq_small":
        raise UserError(f"tokenizer.name is {config.tokenizer.name!r}, which is not trained here: write vq_small")
    if not args.vgg.is_file():
        raise UserError(f"--vgg: there is no file {str(args.vgg)!r}")
    torch.set_num_threads(config.machine.threads)
    device = config.machine.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    file = train(config, recipe, args.vgg, torch.device(device), args.reconstructions)
    print(json.dumps({"file": str(file)} | summary(file)["heldout"]))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
