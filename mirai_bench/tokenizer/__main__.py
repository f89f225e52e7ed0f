"""python -m mirai_bench.tokenizer train | measure: makes the weights of vq_small; measures the reconstructions of any tokenizer."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

import torch

from ..cli import run
from ..compose import load_run
from ..config import RunConfig
from ..data.datasets import open_dataset
from ..errors import UserError
from . import load_tokenizer
from .measure import measure
from .train import Recipe, summary, train

TRAIN = """example:
  python -m mirai_bench.tokenizer train cifar10 --vgg vgg16_features.pt --set machine.data=cifar10.npz

The weights and their record (PSNR, codebook usage, seconds, hardware) are written below runs/tokenizers. Run the same command again after an
interruption: it goes on. Use the weights with tokenizer.weights: PATH."""

MEASURE = """example:
  python -m mirai_bench.tokenizer measure cifar10 --set machine.data=cifar10.npz --reconstructions held-out.npz
  python -m mirai_bench.evaluate held-out.npz --config cifar10 --protocol cifar10_10k \\
      --set evaluation.protocol.reference=heldout   # rFID"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m mirai_bench.tokenizer", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    train_ = commands.add_parser("train", help="train vq_small", epilog=TRAIN, formatter_class=raw)
    measure_ = commands.add_parser("measure", help="measure a tokenizer on held-out images", epilog=MEASURE, formatter_class=raw)
    for sub in (train_, measure_):
        sub.add_argument("config", type=Path, help="a run file or the name of a profile: its data and tokenizer")
        sub.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a field of the config")
        sub.add_argument(
            "--reconstructions", type=Path, metavar="FILE", help="write the reconstructed held-out images to this .npz"
        )
    train_.add_argument("--vgg", type=Path, required=True, help="state dict of torchvision's VGG16 .features (perceptual loss)")
    for field in fields(Recipe):
        kind = type(field.default)
        train_.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=f"default {field.default}"
        )
    return top


def device_of(config: RunConfig) -> torch.device:
    torch.set_num_threads(config.machine.threads)
    name = config.machine.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def train_command(args: argparse.Namespace, config: RunConfig) -> dict[str, float | int | str]:
    if config.tokenizer.name != "vq_small":
        raise UserError(f"tokenizer.name is {config.tokenizer.name!r}, which is not trained here: write vq_small")
    if not args.vgg.is_file():
        raise UserError(f"--vgg: there is no file {str(args.vgg)!r}")
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    file = train(config, recipe, args.vgg, device_of(config), args.reconstructions)
    return {"file": str(file)} | summary(file)["heldout"]


def measure_command(args: argparse.Namespace, config: RunConfig) -> dict[str, float | int | str]:
    device = device_of(config)
    tokenizer = load_tokenizer(config.tokenizer, device)
    return tokenizer.identity | measure(
        tokenizer, open_dataset(config, "heldout"), config.data.image_size, device, args.reconstructions
    )


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    command = {"train": train_command, "measure": measure_command}[args.command]
    print(json.dumps(command(args, load_run(args.config, args.set))))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
