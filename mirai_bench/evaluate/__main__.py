"""The command `python -m mirai_bench.evaluate`.

It evaluates a run or images, compares records, writes reference statistics, and trains the
classifiers in whose features images are compared.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mirai_bench.tracking.journal import encoded
from mirai_bench.tracking.named_runs import run_path
from mirai_bench.utils.cli import add_config, add_device, add_settings, run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import append_line
from mirai_bench.utils.outputs import output_file, output_folder

log = logging.getLogger(__name__)

FEW_SAMPLES = 10_000  # below this number the bias of FID is worth a message


# ---- evaluate RUN|IMAGES


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.evaluate",
        description="Evaluates a run, a folder of images, or an .npz of images (arr_0). Prints the "
        "record as one JSON line. `evaluate compare A B` compares records, `evaluate reference "
        "IMAGES OUT.npz` writes reference statistics, `evaluate classifier CONFIG` trains the network of "
        "an extractor: see their --help. Under torchrun the processes share the work; the numbers stay "
        "the same.",
        epilog="example: python -m mirai_bench.evaluate runs/a87d3a399400 "
        "--set evaluation.protocol.num_samples=2000 --npz samples.npz",
    )
    add = result.add_argument
    what = "a run folder, AXIS/ARM/SEED of a sweep, a folder of images, or an .npz file"
    add("what", type=run_path, metavar="RUN|IMAGES", help=what)
    add("--protocol", metavar="NAME", help="digits, cifar10_10k, paper, …; default: the run's")
    whose = "for IMAGES: whose data `train` and `heldout` mean; default digits"
    add("--config", metavar="PROFILE|FILE", help=whose)
    add_settings(result, "evaluation.protocol.num_samples=2000")
    add("--weights", type=Path, metavar="FILE", help="weight file of the extractor")
    add(
        "--npz",
        type=output_file(".npz"),
        metavar="OUT.npz",
        help="also write the images as ADM's evaluator reads them",
    )
    add("--record", type=output_file(), metavar="FILE", help="also append the record to this file")
    add("--extrapolate", action="store_true", help="also estimate the Fréchet distance at n = ∞")
    add_device(result)
    add("--batch-size", type=int, metavar="N", help="images per batch of sampling: speed and memory only")
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints the record."""
    if argv and argv[0] == "compare":
        from mirai_bench.results.compare import command as compare_command

        return compare_command(argv[1:])
    if argv and argv[0] == "reference":
        return reference_command(argv[1:])
    if argv and argv[0] == "classifier":
        return classifier_command(argv[1:])
    args = parser().parse_args(argv)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: write 1 or more")
    record = evaluate(args)
    if record is None:  # this is not rank 0
        return 0
    _describe(record)
    print(json.dumps(record), flush=True)  # first: it is there if the disk is full
    if args.record is not None:
        append_line(args.record, encoded(record))
    return 0


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Evaluates what the command line names. Under torchrun all ranks call this together."""
    # Imported here, so that --help needs no torch.
    import torch

    from mirai_bench.evaluate.request import Request, evaluate_request
    from mirai_bench.utils.device import resolve_device
    from mirai_bench.utils.distributed import Ranks, process_group, rank_and_world

    request = Request(**vars(args))
    device = resolve_device(request.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with process_group(torch.device("cpu")):  # gloo: features travel from CPU to CPU
        return evaluate_request(request, device, Ranks(*rank_and_world()))


def _describe(record: dict[str, Any]) -> None:
    """Logs the metrics of a record, and what has to be known about them."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
    reference = record["reference"]
    n = record["protocol"]["num_samples"]
    against = ""
    if record["extractor"]["name"] != "none":
        against = f" against {reference['name']}, n = {reference['n'] or 'not stated'}"
    log.info(f"{numbers} (n = {n:,}{against})")
    if "FID" in record["metrics"] and n < FEW_SAMPLES:
        log.info(
            f"FID at n = {n:,} is biased upwards and comparable at the same n only: see KID, or --extrapolate"
        )


# ---- evaluate reference


def reference_parser() -> argparse.ArgumentParser:
    """Returns the parser of `evaluate reference`."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.evaluate reference",
        description="Writes reference statistics, once for many evaluations; prints their manifest.",
        epilog="example: python -m mirai_bench.evaluate reference heldout heldout.npz --extractor digits",
    )
    what = "a split of the data of --config, a folder, or an .npz file with arr_0"
    add = result.add_argument
    add("images", metavar="train|heldout|IMAGES", help=what)
    add("out", type=output_file(".npz"), metavar="OUT.npz", help="the file to write")
    add("--extractor", required=True, metavar="NAME", help="feature extractor, for instance digits")
    add("--config", default="digits", metavar="PROFILE|FILE", help="whose data it is; default digits")
    add_settings(result, "machine.data=cifar10.npz")
    add("--weights", type=Path, metavar="FILE", help="weight file of the extractor")
    add_device(result)
    return result


def reference_command(argv: list[str]) -> int:
    """Runs `evaluate reference` and returns its exit code. Prints the manifest."""
    args = reference_parser().parse_args(argv)
    # Imported here, so that --help needs no torch.
    from mirai_bench.config.load import load_run
    from mirai_bench.evaluate.extractors import open_extractor
    from mirai_bench.evaluate.reference_images import SPLITS, path_images, split_images
    from mirai_bench.evaluate.references import write_reference
    from mirai_bench.utils.device import resolve_device

    config = load_run(args.config, args.settings)
    extractor = open_extractor(config, args.extractor, resolve_device(args.device), args.weights)
    is_split = args.images in SPLITS
    images = split_images(config, args.images) if is_split else path_images(Path(args.images))
    print(json.dumps(write_reference(args.out, images, extractor)))
    return 0


# ---- evaluate classifier


def classifier_parser() -> argparse.ArgumentParser:
    """Returns the parser of `evaluate classifier`."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.evaluate classifier",
        description="Trains the classifier behind FD-cifar10, FD-fashion, or FD-own of a folder. Writes "
        "its weights and their record; prints the file and the accuracy on the held-out images.",
        epilog="example: python -m mirai_bench.evaluate classifier cifar10 --set machine.data=cifar10.npz",
    )
    add_config(result)
    result.add_argument("--epochs", type=int, metavar="N", help="length of training; default 60 or fewer")
    out = "where to write; default classifiers in the folder of runs"
    result.add_argument("--out", type=output_folder, metavar="FOLDER", help=out)
    return result


def classifier_command(argv: list[str]) -> int:
    """Runs `evaluate classifier` and returns its exit code. Prints one line of JSON."""
    args = classifier_parser().parse_args(argv)
    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"--epochs is {args.epochs}: write 1 or more")
    # Imported here, so that --help needs no torch.
    import torch

    from mirai_bench.config.load import load_run
    from mirai_bench.evaluate.classifier_training import train_and_record
    from mirai_bench.evaluate.own_classifier import training_of
    from mirai_bench.utils.device import resolve_device

    config = load_run(args.config, args.settings)
    if config.data.dataset == "digits":
        raise UserError(
            "the digits classifier ships with the package, and training it again gives the same weights: "
            "write a profile of other data"
        )
    torch.set_num_threads(config.machine.threads)
    train, heldout, recipe = training_of(config)
    recipe = replace(recipe, epochs=args.epochs or recipe.epochs)
    folder = args.out or config.machine.runs / "classifiers"
    file, record = train_and_record(train, heldout, recipe, resolve_device(config.machine.device), folder)
    print(json.dumps({"file": str(file)} | record["heldout"]))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
