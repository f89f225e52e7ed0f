"""What the command line asks for: an evaluation of a run or of images, and its record."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mirai_bench.config.load import build_run, load_run, merge, parse_sets
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.image_sets import NpzWriter, open_images
from mirai_bench.evaluate.evaluation import Evaluation, Evaluator
from mirai_bench.evaluate.measure import StoredImages
from mirai_bench.evaluate.reference_images import SPLITS
from mirai_bench.sample.sampler import load_for_sampling
from mirai_bench.tracking import provenance
from mirai_bench.tracking.records import ONE_OFF
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.device import device_name
from mirai_bench.utils.distributed import Ranks
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256


@dataclass(frozen=True)
class Request:
    """The options of the command line, which `evaluate.__main__.parser` describes."""

    what: Path
    protocol: str | None
    config: str | None
    settings: list[str]
    weights: Path | None
    npz: Path | None
    record: Path | None
    extrapolate: bool
    device: str
    batch_size: int | None
    plugins: list[str]

    def settled(self, config: RunConfig, num_samples: int | None = None) -> RunConfig:
        """Returns the config under --protocol and --set, with another number of samples if given.

        Raises UserError if they change more than evaluation and machine.
        """
        fields = config.model_dump(mode="json")
        settings = parse_sets(self.settings)
        if self.protocol:
            fields["evaluation"]["protocol"] = self.protocol
        if num_samples is not None:
            settings = merge(settings, {"evaluation": {"protocol": {"num_samples": num_samples}}})
        settled = build_run(fields, "--protocol, --set", settings)
        free = {"evaluation", "machine"}
        if settled.model_dump(exclude=free) != config.model_dump(exclude=free):
            words = " ".join(self.settings)
            raise UserError(f"--set {words}: only fields of evaluation and machine can be set here")
        return settled

    def measure_options(self, n: int) -> dict[str, Any]:
        """Returns the options of `measure` for n images."""
        writer = NpzWriter(self.npz, n) if self.npz is not None else None
        return {"extrapolate": self.extrapolate, "writer": writer, "label": "evaluating"}


def evaluate_request(request: Request, device: torch.device, ranks: Ranks) -> dict[str, Any] | None:
    """Evaluates a run or images and returns the record, or None on ranks other than 0."""
    folder = RunFolder(request.what)
    if folder.holds_run:
        return _evaluate_run(request, folder, device, ranks)
    return _evaluate_images(request, device, ranks)


def _evaluate_run(
    request: Request, folder: RunFolder, device: torch.device, ranks: Ranks
) -> dict[str, Any] | None:
    if request.config is not None:
        raise UserError(f"--config is {request.config}, but {folder} is a run and has its own: leave it out")
    config = request.settled(load_run(folder.config_file))
    # A run that was moved finds its caches beside it, and writes nothing where it once was.
    if folder.path.absolute().name == config.run_path.name and not _sets_runs(request):
        config = config.with_machine(runs=folder.path.absolute().parent)
    torch.set_num_threads(config.machine.threads)
    protocol = config.evaluation.protocol
    loaded = load_for_sampling(folder, protocol.weights, device)
    evaluator = Evaluator(config, device, request.weights)
    options = request.measure_options(protocol.num_samples)
    size = request.batch_size
    found = evaluator.evaluate_model(loaded.model, batch_size=size, ranks=ranks, **options)
    if found is None:
        return None
    # What training had cost up to the checkpoint, as far as the journal says it.
    spent = {}
    for line in folder.journal.lines():
        if line["step"] == loaded.step and "train_flops" in line:
            keys = ("epoch", "train_flops", "train_seconds", *ONE_OFF)
            spent = {key: line[key] for key in keys if key in line}
    identity = {
        "fingerprint": loaded.config.fingerprint(),
        "profile": config.profile,
        "seed": config.seed,
        "config": config.for_record(),
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
    }
    return {"step": loaded.step} | spent | _record(found, device) | identity


def _sets_runs(request: Request) -> bool:
    return "runs" in parse_sets(request.settings).get("machine", {})


def _evaluate_images(request: Request, device: torch.device, ranks: Ranks) -> dict[str, Any] | None:
    if not request.protocol:
        raise UserError(
            f"{request.what} is not a run folder (it has no config.json); to evaluate images, name "
            "a --protocol"
        )
    images = open_images(request.what)
    n = len(images)
    config = request.settled(load_run(request.config or "digits"), num_samples=n)
    torch.set_num_threads(config.machine.threads)
    protocol = config.evaluation.protocol
    if request.config is None and protocol.reference in SPLITS and protocol.extractor != "digits":
        raise UserError(
            f"protocol.reference is {protocol.reference}: of which data? Write --config, for "
            "instance --config cifar10"
        )
    evaluator = Evaluator(config, device, request.weights)
    found = evaluator.evaluate(StoredImages(images), ranks=ranks, **request.measure_options(n))
    if found is None:
        return None
    source: dict[str, Any] = {"name": request.what.name, "sha256": file_sha256(request.what), "n": n}
    if images.left_out:
        source["left_out"] = images.left_out
    return _record(found, device) | {"source": source}


def _record(found: Evaluation, device: torch.device) -> dict[str, Any]:
    """Returns what the records of runs and of images have in common."""
    return {
        "kind": "evaluation",
        "time": time.time(),
        "metrics": found.metrics,
        "sample_seconds": found.sample_seconds,
        "evaluate_seconds": found.evaluate_seconds,
        **found.provenance,
        "git": provenance.git_state(),
        "versions": provenance.versions(),
        "device": device_name(device),
        "precision": "fp32",
    }
