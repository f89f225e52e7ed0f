"""What one trial does: it trains one cell. No ray in here; torch is imported once a process, inside the functions."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..config import Machine, RunConfig
from ..errors import UserError
from ..journal import read_journal, write_atomic


def share_of_worker(machine: Machine) -> dict[str, float]:
    """What one process of a trial takes, in Ray's names."""
    shares = {"CPU": machine.cpus / machine.workers, "GPU": machine.gpus / machine.workers}
    return {name: amount for name, amount in shares.items() if amount}


@dataclass(frozen=True)
class Job:
    """What the trials of a sweep know: its cells, and how driver and trials speak with each other, which is by files beside the plan."""

    configs: list[dict[str, Any]]
    """one a cell, in the order of execution"""
    check_file: Path
    """{"wrong": […]}, left by the first trial; nothing is trained while anything is wrong"""
    stop_file: Path
    """once it is there, runs save a checkpoint and leave"""
    seen_file: Path
    """left by the driver under a new name each time: a node that does not see it has another folder of runs"""
    neighbours: int = 1
    """processes that share the memory of one node, at most"""

    @classmethod
    def beside(cls, configs: list[dict[str, Any]], folder: Path, name: str) -> Job:
        return cls(configs, folder / f"{name}.check", folder / f"{name}.stop", folder / f"{name}.seen-{uuid.uuid4().hex}")

    def begin(self) -> None:
        """By the driver that holds the sweep: what an earlier one left is no more."""
        earlier = self.seen_file.name.split(".seen-")[0] + ".seen-*"
        for left in (self.check_file, self.stop_file, *self.seen_file.parent.glob(earlier)):
            left.unlink(missing_ok=True)
        self.seen_file.touch()

    def accepted(self) -> bool:
        """Whether the cells passed the check, which the first to ask makes while the others wait."""
        if not self.seen_file.is_file():
            from ..ranks import not_shared

            raise not_shared(self.seen_file.parents[1], [socket.gethostname()])
        with FileLock(f"{self.check_file}.lock"):
            if not self.check_file.is_file():
                write_atomic(self.check_file, json.dumps({"wrong": preflight(self.configs, self.neighbours)}))
        return not self.wrong()

    def wrong(self) -> list[str] | None:
        """None: not checked yet."""
        return json.loads(self.check_file.read_bytes())["wrong"] if self.check_file.is_file() else None


def run_cell(trial: dict[str, Any], *, job: Job) -> dict[str, Any]:
    """Trains cell number trial["cell"] from its newest checkpoint. What a run cannot get past ends as its failed.json, not as an exception:
    only what another attempt may mend (a lost worker, a broken device) raises, and is tried again.

    → seconds: of the whole call, of imports and the check, and of what the journal measured (steps, sampling, evaluation)
    """
    start = time.time()
    from ..trainer import run_dir_of

    config = RunConfig.model_validate(job.configs[trial["cell"]])
    run_dir = run_dir_of(config)
    before = measured_seconds(run_dir)
    if config.machine.workers > 1:
        from .workers import train_in_workers

        train_in_workers(config, job)
        began = began_after(start, run_dir)
    else:
        accepted, began = ready(config, job), time.time()
        if accepted:
            from ..failure import RunFailed

            with contextlib.suppress(RunFailed, UserError):
                train_here(config, job.stop_file)
    seconds, measured = time.time() - start, measured_seconds(run_dir) - before
    return {"seconds": seconds, "ready_seconds": began - start, "measured_seconds": measured}


def began_after(start: float, run_dir: Path) -> float:
    """When the workers of a trial that came up at `start` began to train; `start` where they did not."""
    starts = [line["time"] for line in read_journal(run_dir / "journal.jsonl") if line["kind"] == "start"]
    return min((time for time in starts if time > start), default=start)


def ready(config: RunConfig, job: Job) -> bool:
    """Imports what training needs, then says whether the cells are in order."""
    from .. import evaluate, train  # noqa: F401  before one process makes the check, for which the others wait
    from ..data.datasets import open_dataset

    if config.data.dataset == "digits":
        open_dataset(config, "train")  # imports scikit-learn
    return job.accepted()


def train_here(config: RunConfig, stop_file: Path) -> None:
    """In this process, one of a group where there is one. Raises RunFailed or UserError, with the failed.json, for what cannot be got past."""
    from .. import train as training
    from ..failure import leave_failure
    from ..trainer import run_dir_of

    run_dir = run_dir_of(config)
    with log_of(run_dir):
        try:
            training.train(config, run_dir, wait=True, stop=stop_file.exists)
        except KeyboardInterrupt:
            pass  # asked to stop: its checkpoint is there
        except (training.RunFailed, UserError) as error:
            if not (run_dir / "failed.json").is_file():
                leave_failure(run_dir, error)
            raise


@contextlib.contextmanager
def log_of(run_dir: Path) -> Iterator[None]:
    """What a run says goes to its log.txt: on the terminal several would talk at once."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (
        open(run_dir / "log.txt", "a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stderr(log),
        contextlib.redirect_stdout(log),
    ):
        yield


def measured_parts(run_dir: Path) -> dict[str, float]:
    """Seconds that the journal accounts for, by what a run is for."""
    parts = {"training steps": 0.0, "sampling": 0.0, "evaluation": 0.0}
    for line in read_journal(run_dir / "journal.jsonl"):
        if line["kind"] in ("train", "end"):
            parts["training steps"] = line["train_seconds"]
        elif line["kind"] == "evaluation":
            parts["sampling"] += line["sample_seconds"]
            parts["evaluation"] += line["evaluate_seconds"]
    return parts


def measured_seconds(run_dir: Path) -> float:
    return sum(measured_parts(run_dir).values())


def preflight(configs: list[dict[str, Any]], beside: int = 1) -> list[str]:
    """What is wrong with these cells, of which `beside` processes share a machine, as far as it shows before anything is trained: one message
    a mistake.

    Afterwards what all cells are measured with (extractor, reference) is in the cache.
    """
    from ..memory import check_memory

    messages: list[str] = []
    checked: set[str] = set()
    for fields in configs:
        config = RunConfig.model_validate(fields)
        parts = [fields[key] for key in ("data", "tokenizer", "evaluation", "train")] + [fields["foresight"]["encoder"]]
        key = json.dumps([*parts, config.foresight.uses_encoder])
        try:
            check_memory(config, beside)
            if key not in checked:
                checked.add(key)
                _check(config)
        except UserError as error:
            messages.append(str(error))
    return list(dict.fromkeys(messages))


def _check(config: RunConfig) -> None:
    from ..data.codes import open_codes
    from ..evaluate import open_extractor, open_reference
    from ..foresight.pixel_entries import entry_of, find_weights
    from ..networks import assets_folder
    from ..trainer import resolve_device

    device, encoder, protocol = resolve_device(config), config.foresight.encoder, config.evaluation.protocol
    if config.foresight.uses_encoder and encoder.name != "masked_tokens":
        find_weights(encoder.name, entry_of(encoder.name), encoder.weights, assets_folder(config))
    images = open_codes(config, "train", device).num_images
    if config.train.batch_size > images:
        raise UserError(f"train.batch_size is {config.train.batch_size}, but the training split has {images} images: write less")
    open_reference(config, protocol.reference, open_extractor(config, protocol.extractor, device))
