"""The command `python -m mirai_bench.tokenizer`: trains a VQ tokenizer, or measures any."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from mirai_bench.config.load import load_run
from mirai_bench.tokenizer.recipe import Recipe
from mirai_bench.utils.cli import add_config, run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.outputs import output_file

log = logging.getLogger("mirai_bench.tokenizer")  # __name__ is "__main__" here

TRAIN = """example:
  python -m mirai_bench.tokenizer train cifar10 --vgg vgg16_features.pt --set machine.data=cifar10.npz

The weights and their record (PSNR, codebook usage, seconds, hardware) are written to
runs/tokenizers. Run the same command again to resume after an interruption. Use the weights with
tokenizer.weights: PATH. rFID is added to the record by `measure --write-record --rfid`."""

MEASURE = """example:
  python -m mirai_bench.tokenizer measure cifar10 --set machine.data=cifar10.npz \
--set machine.assets=ASSETS --reconstructions held-out.npz --rfid"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.tokenizer",
        description="Trains a small VQ tokenizer, or measures any tokenizer on held-out images.",
    )
    commands = result.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    train = commands.add_parser("train", help="train vq_small", epilog=TRAIN, formatter_class=raw)
    measure = commands.add_parser(
        "measure", help="measure a tokenizer on held-out images", epilog=MEASURE, formatter_class=raw
    )
    # 1. What both take.
    for command in (train, measure):
        add_config(command)
        command.add_argument(
            "--reconstructions",
            type=output_file(".npz"),
            metavar="OUT.npz",
            help="an .npz for the reconstructed images",
        )
    # 2. What one of them takes. Every field of the recipe is an option.
    measure.add_argument(
        "--rfid", action="store_true", help="measure --reconstructions: rFID, KID, precision, recall"
    )
    measure.add_argument(
        "--write-record", action="store_true", help="put the numbers into the record of the weights"
    )
    vgg = "state dict of torchvision's VGG16 .features, or none: no perceptual term"
    train.add_argument("--vgg", type=Path, required=True, metavar="FILE|none", help=vgg)
    out = "also write the weights and their record here, as the profile's tokenizer.weights names them"
    train.add_argument("--out", type=output_file(".safetensors"), metavar="OUT.safetensors", help=out)
    for field in fields(Recipe):
        option = f"--{field.name.replace('_', '-')}"
        default = field.default
        kind: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            kind = {"action": "store_true"}
        train.add_argument(option, default=default, help=f"default {default}", **kind)
    return result


def train_command(args: argparse.Namespace) -> dict[str, Any]:
    """Trains a tokenizer. Returns its weight file and what it was measured as."""
    # Without the weights that the profile will use, which are to be made now.
    config = load_run(args.config, [*args.settings, "tokenizer.weights=null"])
    name = config.tokenizer.name
    if name != "vq_small":
        raise UserError(f"tokenizer.name is {name!r}, which is not trained here: write vq_small")
    vgg = None if str(args.vgg) == "none" else args.vgg
    if vgg is not None and not vgg.is_file():
        raise UserError(
            f"--vgg: there is no file {str(vgg)!r}: `mirai-bench assets` says how to make it, or write --vgg "
            "none to train without the perceptual term"
        )
    # Imported here, so that --help and wrong configs need no torch.
    import torch

    from mirai_bench.tokenizer.quality import record_file
    from mirai_bench.tokenizer.train import train
    from mirai_bench.utils.device import Hardware
    from mirai_bench.utils.files import write_bytes

    torch.set_num_threads(config.machine.threads)
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    machine = config.machine
    hardware = Hardware.resolve(machine.device, "auto", machine.compile, recipe.channels)
    file, record = train(config, recipe, vgg, hardware.device, args.reconstructions, compile=hardware.compile)
    if args.out is not None:
        for source, copy in ((file, args.out), (record_file(file), record_file(args.out))):
            write_bytes(copy, source.read_bytes())
        file = args.out
    log.info(f"to use it, write tokenizer.weights: {file}")
    return {"file": str(file)} | record["heldout"]


def measure_command(args: argparse.Namespace) -> dict[str, Any]:
    """Measures a tokenizer. Returns its identity and the numbers."""
    config = load_run(args.config, args.settings)
    if args.rfid and args.reconstructions is None:
        raise UserError("--rfid measures reconstructed images: write --reconstructions FILE.npz too")
    import torch

    from mirai_bench.data.images.datasets import open_dataset
    from mirai_bench.data.tokenizers import load_tokenizer
    from mirai_bench.evaluate.evaluation import check_evaluation
    from mirai_bench.tokenizer.quality import find_record, measure, read_record
    from mirai_bench.tokenizer.reconstruction import reconstruction_distance
    from mirai_bench.utils.device import resolve_device
    from mirai_bench.utils.files import write_json

    # 1. Check everything before images are encoded.
    record = find_record(config) if args.write_record else None
    if args.rfid:
        check_evaluation(config)
    heldout = open_dataset(config, "heldout")
    # 2. Measure.
    torch.set_num_threads(config.machine.threads)
    device = resolve_device(config.machine.device)
    tokenizer = load_tokenizer(config, device)
    size = config.data.image_size
    measured: dict[str, Any] = measure(tokenizer, heldout, size, device, args.reconstructions)
    if args.rfid:
        measured["rfid"] = reconstruction_distance(config, args.reconstructions, device)
    if record is not None:
        write_json(record, read_record(record) | {"heldout": measured})
    return tokenizer.identity | measured


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints one line of JSON."""
    args = parser().parse_args(argv)
    command = train_command if args.command == "train" else measure_command
    print(json.dumps(command(args)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
