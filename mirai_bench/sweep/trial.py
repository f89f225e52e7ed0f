"""What one trial does: it trains one cell. No ray in here; torch is imported once a process, inside the functions."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..config import RunConfig
from ..errors import UserError
from ..journal import read_journal, write_atomic
from .processes import train_in_processes


@dataclass(frozen=True)
class Job:
    """What the trials of a sweep know: its cells, and how driver and trials speak with each other, which is by files beside the plan."""

    configs: list[dict[str, Any]]
    """one a cell, in the order of execution"""
    check_file: Path
    """{"wrong": […]}, left by the first trial; nothing is trained while anything is wrong"""
    stop_file: Path
    """once it is there, runs save a checkpoint and leave"""

    def accepted(self) -> bool:
        """Whether the cells passed the check, which the first to ask makes while the others wait."""
        with FileLock(f"{self.check_file}.lock"):
            if not self.check_file.is_file():
                write_atomic(self.check_file, json.dumps({"wrong": preflight(self.configs)}))
        return not self.wrong()

    def wrong(self) -> list[str] | None:
        """None: not checked yet."""
        return json.loads(self.check_file.read_bytes())["wrong"] if self.check_file.is_file() else None


def run_cell(trial: dict[str, Any], *, job: Job) -> dict[str, Any]:
    """Trains cell number trial["cell"] from its newest checkpoint. What a run cannot get past ends as its failed.json, not as an exception:
    only what another attempt may mend (a lost worker, a broken device) raises, and is tried again.

    → seconds: of the whole call, of imports and the check, and of what the journal measured (steps, sampling, evaluation)
    """
    start = time.perf_counter()
    from .. import evaluate  # noqa: F401  before one process makes the check, for which the others wait
    from .. import train as training
    from ..data.datasets import open_dataset
    from ..trainer import run_dir_of

    config = RunConfig.model_validate(job.configs[trial["cell"]])
    if config.data.dataset == "digits":
        open_dataset(config, "train")  # imports scikit-learn
    if not job.accepted():
        return {}
    run_dir = run_dir_of(config)
    ready, before = time.perf_counter() - start, measured_seconds(run_dir)
    with log_of(run_dir):
        try:
            if config.machine.workers > 1:
                train_in_processes(config, run_dir, job.stop_file)
            else:
                training.train(config, run_dir, wait=True, stop=job.stop_file.exists)
        except KeyboardInterrupt:
            pass  # asked to stop: its checkpoint is there
        except (training.RunFailed, UserError) as error:
            if not (run_dir / "failed.json").is_file():  # its teacher's run failed
                write_atomic(run_dir / "failed.json", json.dumps({"reason": str(error), "step": None}))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "ready_seconds": ready, "measured_seconds": measured_seconds(run_dir) - before}


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


def measured_seconds(run_dir: Path) -> float:
    """Seconds that the journal accounts for: training steps, sampling, evaluation."""
    trained = evaluated = 0.0
    for line in read_journal(run_dir / "journal.jsonl"):
        if line["kind"] in ("train", "end"):
            trained = line["train_seconds"]
        elif line["kind"] == "evaluation":
            evaluated += line["sample_seconds"] + line["evaluate_seconds"]
    return trained + evaluated


def preflight(configs: list[dict[str, Any]]) -> list[str]:
    """What is wrong with these cells, as far as it shows before anything is trained: one message a mistake.

    Afterwards what all cells are measured with (extractor, reference) is in the cache.
    """
    messages: list[str] = []
    checked: set[str] = set()
    for config in configs:
        parts = [config[key] for key in ("data", "tokenizer", "evaluation", "train")] + [config["foresight"]["encoder"]]
        key = json.dumps(parts)
        try:
            if key not in checked:
                _check(RunConfig.model_validate(config))
        except UserError as error:
            messages.append(str(error))
        checked.add(key)
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
