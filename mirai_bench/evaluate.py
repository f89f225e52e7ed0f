"""Evaluation of samples under a protocol: what they are compared with, in which feature space, and all that a reader needs to repeat it.

python -m mirai_bench.evaluate RUN --protocol paper
python -m mirai_bench.evaluate IMAGES --protocol cifar10_10k --config cifar10
python -m mirai_bench.evaluate compare A B
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from . import provenance
from .cli import progress, run, say
from .compare import command as compare_command
from .compose import build_run, load_run, parse_sets
from .config import RunConfig
from .data.codes import has_heldout, open_codes
from .errors import UserError
from .extractors import Extractor, entry_of, open_extractor
from .hashing import file_sha256
from .images import NpzWriter, open_images
from .journal import read_journal
from .measure import Measured, Sampled, Stored, Unit, measure
from .model import ARModel
from .protocol import Protocol
from .ranks import Ranks
from .references import SPLITS, Reference, find_reference, open_reference, split_images
from .references import command as reference_command
from .sample import image_grid, load_for_sampling
from .tokenizer import Tokenizer, load_tokenizer

HELDOUT_BATCH = 256
LOCAL_PATHS = {"machine": {"runs", "data", "codes", "assets"}}  # of the machine, nothing to a reader of the record


class Result(NamedTuple):
    metrics: dict[str, float]
    provenance: dict[str, Any]
    """protocol, protocol_digest, extractor, reference"""
    grid: np.ndarray
    """uint8 (h, w, 3) of the first samples, a class a column"""
    sample_seconds: float
    evaluate_seconds: float


@torch.inference_mode()
def heldout_ntp(model: ARModel, config: RunConfig, device: torch.device) -> float:
    """Next-token loss on the held-out split, nats per token, given the true class, without dropout."""
    tokens, labels = _heldout(config, device)
    total = 0.0
    for part, part_labels in zip(tokens.split(HELDOUT_BATCH), labels.split(HELDOUT_BATCH), strict=True):
        logits = model(part, part_labels).logits.flatten(0, 1).float()
        total += F.cross_entropy(logits, part.flatten(), reduction="sum").item()
    return total / tokens.numel()


# What is the same for every evaluation of a run is opened once.
@lru_cache(maxsize=1)
def _heldout(config: RunConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return open_codes(config, "heldout", device).all()


@lru_cache(maxsize=1)
def _tokenizer(config: RunConfig, device: torch.device) -> Tokenizer:
    return load_tokenizer(config.tokenizer, device)


@lru_cache(maxsize=1)
def _opened(config: RunConfig, device: torch.device, weights: Path | None) -> tuple[Extractor, Reference]:
    protocol = config.evaluation.protocol
    extractor = open_extractor(config, protocol.extractor, device, weights)
    return extractor, open_reference(config, protocol.reference, extractor)


def check_evaluation(config: RunConfig) -> None:
    """Raises UserError where a run of this config could not be evaluated: unknown extractor, weights or reference that are not there.

    Weights that can be had (the digits classifier, a download) are had now rather than after the first epochs.
    """
    protocol = config.evaluation.protocol
    entry_of(protocol.extractor).locate(config, None)
    if protocol.reference in SPLITS:
        split_images(config, protocol.reference)
    else:
        find_reference(config, protocol.reference)


def provenance_of(protocol: Protocol, extractor: Extractor, reference: Reference) -> dict[str, Any]:
    return {
        "protocol": protocol.model_dump(mode="json"),
        "protocol_digest": protocol.digest(),
        "extractor": extractor.identity,
        "reference": reference.identity,
    }


def evaluate_model(
    model: ARModel, config: RunConfig, device: torch.device, *, batch_size: int | None = None, ranks: Ranks | None = None
) -> Result | None:
    """Samples what the run's protocol says and measures it, held-out loss included where the data has a held-out split.

    `model` already holds the weights that the protocol names. `batch_size` is speed and memory only. With `ranks` all processes of the
    group call this and share the work; all but rank 0 get None.
    """
    start = time.perf_counter()
    measured = measure_model(model, config, device, batch_size, ranks=ranks)
    if measured is None:
        return None
    grid = first_grid(measured.first, config.data.classes)
    seconds = time.perf_counter() - start - measured.sample_seconds
    provenance = provenance_of(config.evaluation.protocol, *_opened(config, device, None))
    return Result(measured.metrics, provenance, grid, measured.sample_seconds, seconds)


def measure_model(
    model: ARModel, config: RunConfig, device: torch.device, batch_size: int | None, weights: Path | None = None, **options: Any
) -> Measured | None:
    """`options` are measure's. None at ranks other than 0."""
    protocol = config.evaluation.protocol
    source = Sampled(model, _tokenizer(config, device), protocol, batch_size)
    measured = measure(source, *_opened(config, device, weights), resize=protocol.resize, **options)
    if measured is not None and has_heldout(config):
        measured.metrics["heldout_ntp"] = heldout_ntp(model, config, device)
    return measured


def first_grid(images: np.ndarray, classes: int) -> np.ndarray:
    columns = min(10, classes)
    rows = 10 if images.shape[1] <= 64 else 4
    return image_grid(images[: rows * columns], columns)


# ---- the command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.evaluate",
        description="Evaluates a run, a folder of images, or an .npz of images (arr_0). Prints the record as one JSON line. "
        "`evaluate compare A B` compares records, `evaluate reference IMAGES OUT.npz` writes reference statistics: see "
        "their --help. Under torchrun the processes share the work; the numbers stay the same.",
        epilog="example: python -m mirai_bench.evaluate runs/a87d3a399400 --set evaluation.protocol.num_samples=2000 --npz samples.npz",
    )
    parser.add_argument("what", type=Path, metavar="RUN|IMAGES")
    parser.add_argument("--protocol", metavar="NAME", help="digits, cifar10_10k, paper, …; by default the run's own")
    parser.add_argument(
        "--config", metavar="PROFILE|FILE", help="IMAGES: whose data `train` and `heldout` mean (default: digits)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a field of evaluation or machine")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the extractor's weight file")
    parser.add_argument("--npz", type=Path, metavar="OUT", help="also write the images as ADM's TensorFlow evaluator takes them")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also append the record to this file")
    parser.add_argument("--extrapolate", action="store_true", help="also the Fréchet distance at n = ∞, from a line in 1/n")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="of sampling: speed and memory only; by default by the size of the model")
    return parser


def _ranks() -> Ranks:
    """torchrun's, with a process group on the CPU: only results travel."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    return Ranks(int(os.environ.get("RANK", 0)) if world > 1 else 0, world)


def _settled(config: RunConfig, args: argparse.Namespace) -> RunConfig:
    """The config under --protocol and --set, which may change evaluation and machine alone."""
    fields = config.model_dump(mode="json")
    if args.protocol:
        fields["evaluation"]["protocol"] = args.protocol
    settled = build_run(fields, "--protocol, --set", parse_sets(args.set))
    others = {"evaluation", "machine"}
    if settled.model_dump(exclude=others) != config.model_dump(exclude=others):
        raise UserError(f"--set {' '.join(args.set)}: only fields of evaluation and machine can be set here")
    return settled


def command(argv: list[str]) -> int | None:
    others = {"compare": compare_command, "reference": reference_command}
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])
    args = _parser().parse_args(argv)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: write 1 or more")
    ranks = _ranks()
    if ranks.world > 1 and args.device == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)
    evaluate = _evaluate_run if (args.what / "config.json").is_file() else _evaluate_images
    record = evaluate(args, ranks)
    if ranks.world > 1:
        torch.distributed.destroy_process_group()
    if record is not None:
        _report(record, args.record)
    return 0


def _report(record: dict[str, Any], file: Path | None) -> None:
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
    reference, n = record["reference"], record["protocol"]["num_samples"]
    say(f"{numbers} (n = {n:,} against {reference['name']}, n = {reference['n'] or 'not stated'})")
    if "FID" in record["metrics"] and n < 10_000:
        say(f"FID at n = {n:,} is biased upwards, and comparable at the same n alone: see KID, or --extrapolate")
    line = json.dumps(record)
    if file is not None:
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(line + "\n")
    print(line)


def _options(args: argparse.Namespace, config: RunConfig, n: int, ranks: Ranks) -> dict[str, Any]:
    """measure's options."""
    if "logits" not in entry_of(config.evaluation.protocol.extractor).features and ranks.rank == 0:
        say(f"extractor {config.evaluation.protocol.extractor} gives no logits: no Inception Score")

    def watch(units: Iterator[Unit]) -> Iterator[Unit]:
        return progress(units, "evaluating", n, "images", weigh=attrgetter("num_images")) if ranks.rank == 0 else units

    writer = NpzWriter(args.npz, n) if args.npz else None
    return {"ranks": ranks, "extrapolate": args.extrapolate, "writer": writer, "watch": watch}


def _record(
    config: RunConfig, device: torch.device, args: argparse.Namespace, measured: Measured, start: float
) -> dict[str, Any]:
    opened = _opened(config, device, args.weights)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.cpu_name()
    return (
        {"kind": "evaluation", "time": time.time(), "metrics": measured.metrics, "sample_seconds": measured.sample_seconds}
        | {"evaluate_seconds": time.perf_counter() - start - measured.sample_seconds}
        | provenance_of(config.evaluation.protocol, *opened)
        | {"git": provenance.git_state(), "versions": provenance.versions(), "device": name, "precision": "fp32"}
    )


def _evaluate_run(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any] | None:
    if args.config is not None:
        raise UserError(f"--config is {args.config}, but {args.what} is a run and has its own: leave it out")
    device = torch.device(args.device)
    settled = _settled(load_run(args.what / "config.json"), args)
    config, model, _, step = load_for_sampling(args.what, settled.evaluation.protocol.weights, device)
    options, start = _options(args, settled, settled.evaluation.protocol.num_samples, ranks), time.perf_counter()
    measured = measure_model(model, settled, device, args.batch_size, args.weights, **options)
    if measured is None:
        return None
    lines = [line for line in read_journal(args.what / "journal.jsonl") if line["step"] == step and "train_flops" in line]
    spent = {key: lines[-1][key] for key in ("epoch", "train_flops", "train_seconds")} if lines else {}
    identity = {
        "fingerprint": config.fingerprint(),
        "profile": config.profile,
        "seed": config.seed,
        "config": settled.model_dump(mode="json", exclude=LOCAL_PATHS),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return {"step": step} | spent | _record(settled, device, args, measured, start) | identity


def _evaluate_images(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any] | None:
    if not args.protocol:
        raise UserError(f"{args.what} is not a run folder (it has no config.json); to evaluate images, name a --protocol")
    images, device = open_images(args.what), torch.device(args.device)
    config = _settled(load_run(Path(args.config or "digits")), args)
    protocol = config.evaluation.protocol
    if args.config is None and protocol.reference in SPLITS and protocol.extractor != "digits":
        raise UserError(
            f"protocol.reference is {protocol.reference}: of which data? Write --config, for instance --config cifar10"
        )
    if protocol.num_samples != len(images):
        say(
            f"protocol {protocol.name} is of {protocol.num_samples:,} images, {args.what} has {len(images):,}: n is {len(images):,}"
        )
        config = build_run(
            config.model_dump(mode="json"), "images", parse_sets([f"evaluation.protocol.num_samples={len(images)}"])
        )
    options, start = _options(args, config, len(images), ranks), time.perf_counter()
    opened = _opened(config, device, args.weights)
    measured = measure(Stored(images), *opened, resize=protocol.resize, **options)
    if measured is None:
        return None
    source = {"name": args.what.name, "sha256": file_sha256(args.what), "n": len(images)}
    return _record(config, device, args, measured, start) | {"source": source}


if __name__ == "__main__":
    sys.exit(run(command))
