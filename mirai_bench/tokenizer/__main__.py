"""python -m mirai_bench.tokenizer train | measure: makes the weights of vq_small; measures the reconstructions of any tokenizer."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mirai_bench.config.load import load_run
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.evaluate.evaluation import check_evaluation
from mirai_bench.tokenizer.quality import measure
from mirai_bench.tokenizer.reconstruction import reconstruction_distance
from mirai_bench.tokenizer.train import Recipe, open_record, summary, train, write_record
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError

TRAIN = """example:
  python -m mirai_bench.tokenizer train cifar10 --vgg vgg16_features.pt --set machine.data=cifar10.npz

The weights and their record (PSNR, codebook usage, seconds, hardware) are written below runs/tokenizers. Run the same command again after an
interruption: it goes on. Use the weights with tokenizer.weights: PATH. rFID joins the record with `measure --write-record --rfid`."""


MEASURE = """example:
  python -m mirai_bench.tokenizer measure cifar10 --set machine.data=cifar10.npz --set machine.assets=ASSETS --reconstructions held-out.npz --rfid"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m mirai_bench.tokenizer", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    train_ = commands.add_parser("train", help="train vq_small", epilog=TRAIN, formatter_class=raw)
    measure_ = commands.add_parser(
        "measure", help="measure a tokenizer on held-out images", epilog=MEASURE, formatter_class=raw
    )
    for sub in (train_, measure_):
        sub.add_argument(
            "config", type=Path, help="a run file or the name of a profile: its data and tokenizer"
        )
        sub.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a field of the config")
        sub.add_argument(
            "--reconstructions",
            type=Path,
            metavar="FILE",
            help="write the reconstructed held-out images to this .npz",
        )
    measure_.add_argument(
        "--rfid",
        action="store_true",
        help="also the distance of --reconstructions to the held-out images, and KID, precision, recall",
    )
    measure_.add_argument(
        "--write-record",
        action="store_true",
        help="vq_small: put the numbers into the record beside the weights",
    )
    train_.add_argument(
        "--vgg",
        type=Path,
        required=True,
        help="state dict of torchvision's VGG16 .features (perceptual loss)",
    )
    for field in fields(Recipe):
        kind = type(field.default)
        train_.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=field.default,
            help=f"default {field.default}",
        )
    return top


def device_of(config: RunConfig) -> torch.device:
    torch.set_num_threads(config.machine.threads)
    name = config.machine.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def train_command(args: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    if config.tokenizer.name != "vq_small":
        raise UserError(
            f"tokenizer.name is {config.tokenizer.name!r}, which is not trained here: write vq_small"
        )
    if not args.vgg.is_file():
        raise UserError(f"--vgg: there is no file {str(args.vgg)!r}")
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    file = train(config, recipe, args.vgg, device_of(config), args.reconstructions)
    return {"file": str(file)} | summary(file)["heldout"]


def measure_command(args: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    if args.rfid and args.reconstructions is None:
        raise UserError(
            "--rfid is measured on the reconstructed images: write --reconstructions FILE.npz too"
        )
    record = open_record(config.tokenizer) if args.write_record else None
    if args.rfid:
        check_evaluation(config)
    device, heldout = device_of(config), open_dataset(config, "heldout")
    tokenizer = load_tokenizer(config.tokenizer, device)
    measured: dict[str, Any] = measure(
        tokenizer, heldout, config.data.image_size, device, args.reconstructions
    )
    if args.rfid:
        measured["rfid"] = reconstruction_distance(config, args.reconstructions, device)
    if record is not None:
        write_record(record, summary(record) | {"heldout": measured})
    return tokenizer.identity | measured


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    command = {"train": train_command, "measure": measure_command}[args.command]
    print(json.dumps(command(args, load_run(args.config, args.set))))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
