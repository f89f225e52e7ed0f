"""TODO: evaluate.__main__."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from mirai_bench.config.load import build_run, load_run, parse_sets
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.image_sets import NpzWriter, open_images
from mirai_bench.evaluate.evaluation import LOCAL_PATHS, _opened, measure_model, provenance_of
from mirai_bench.evaluate.extractors import entry_of
from mirai_bench.evaluate.measure import Measured, Stored, Unit, measure
from mirai_bench.evaluate.references import SPLITS
from mirai_bench.evaluate.references import command as reference_command
from mirai_bench.results.compare import command as compare_command
from mirai_bench.sample.sampler import load_for_sampling
from mirai_bench.tracking import provenance
from mirai_bench.tracking.journal import read_journal
from mirai_bench.utils.cli import progress, run, say
from mirai_bench.utils.device import cpu_name
from mirai_bench.utils.distributed import Ranks
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256

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
    parser.add_argument(
        "--protocol", metavar="NAME", help="digits, cifar10_10k, paper, …; by default the run's own"
    )
    parser.add_argument(
        "--config",
        metavar="PROFILE|FILE",
        help="IMAGES: whose data `train` and `heldout` mean (default: digits)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="a field of evaluation or machine"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the extractor's weight file")
    parser.add_argument(
        "--npz",
        type=Path,
        metavar="OUT",
        help="also write the images as ADM's TensorFlow evaluator takes them",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="also append the record to this file")
    parser.add_argument(
        "--extrapolate", action="store_true", help="also the Fréchet distance at n = ∞, from a line in 1/n"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="of sampling: speed and memory only; by default by the size of the model",
    )
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
        say(
            f"FID at n = {n:,} is biased upwards, and comparable at the same n alone: see KID, or --extrapolate"
        )
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
        return (
            progress(units, "evaluating", n, "images", weigh=attrgetter("num_images"))
            if ranks.rank == 0
            else units
        )

    writer = NpzWriter(args.npz, n) if args.npz else None
    return {"ranks": ranks, "extrapolate": args.extrapolate, "writer": writer, "watch": watch}


def _record(
    config: RunConfig, device: torch.device, args: argparse.Namespace, measured: Measured, start: float
) -> dict[str, Any]:
    opened = _opened(config, device, args.weights)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return (
        {
            "kind": "evaluation",
            "time": time.time(),
            "metrics": measured.metrics,
            "sample_seconds": measured.sample_seconds,
        }
        | {"evaluate_seconds": time.perf_counter() - start - measured.sample_seconds}
        | provenance_of(config.evaluation.protocol, *opened)
        | {
            "git": provenance.git_state(),
            "versions": provenance.versions(),
            "device": name,
            "precision": "fp32",
        }
    )


def _evaluate_run(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any] | None:
    if args.config is not None:
        raise UserError(f"--config is {args.config}, but {args.what} is a run and has its own: leave it out")
    device = torch.device(args.device)
    settled = _settled(load_run(args.what / "config.json"), args)
    config, model, _, step = load_for_sampling(args.what, settled.evaluation.protocol.weights, device)
    options, start = (
        _options(args, settled, settled.evaluation.protocol.num_samples, ranks),
        time.perf_counter(),
    )
    measured = measure_model(model, settled, device, args.batch_size, args.weights, **options)
    if measured is None:
        return None
    lines = [
        line
        for line in read_journal(args.what / "journal.jsonl")
        if line["step"] == step and "train_flops" in line
    ]
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
        raise UserError(
            f"{args.what} is not a run folder (it has no config.json); to evaluate images, name a --protocol"
        )
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
            config.model_dump(mode="json"),
            "images",
            parse_sets([f"evaluation.protocol.num_samples={len(images)}"]),
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
