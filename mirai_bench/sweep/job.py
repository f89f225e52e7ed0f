"""TODO: sweep.job."""

from __future__ import annotations

import json
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mirai_bench.config.run_config import Machine, RunConfig
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic


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
        return cls(
            configs,
            folder / f"{name}.check",
            folder / f"{name}.stop",
            folder / f"{name}.seen-{uuid.uuid4().hex}",
        )

    def begin(self) -> None:
        """By the driver that holds the sweep: what an earlier one left is no more."""
        earlier = self.seen_file.name.split(".seen-")[0] + ".seen-*"
        for left in (self.check_file, self.stop_file, *self.seen_file.parent.glob(earlier)):
            left.unlink(missing_ok=True)
        self.seen_file.touch()

    def accepted(self) -> bool:
        """Whether the cells passed the check, which the first to ask makes while the others wait."""
        if not self.seen_file.is_file():
            from mirai_bench.utils.distributed import not_shared

            raise not_shared(self.seen_file.parents[1], [socket.gethostname()])
        with FileLock(f"{self.check_file}.lock"):
            if not self.check_file.is_file():
                write_atomic(self.check_file, json.dumps({"wrong": preflight(self.configs, self.neighbours)}))
        return not self.wrong()

    def wrong(self) -> list[str] | None:
        """None: not checked yet."""
        return json.loads(self.check_file.read_bytes())["wrong"] if self.check_file.is_file() else None


def preflight(configs: list[dict[str, Any]], beside: int = 1) -> list[str]:
    """What is wrong with these cells, of which `beside` processes share a machine, as far as it shows before anything is trained: one message
    a mistake.

    Afterwards what all cells are measured with (extractor, reference) is in the cache.
    """
    from mirai_bench.train.memory import check_memory

    messages: list[str] = []
    checked: set[str] = set()
    for fields in configs:
        config = RunConfig.model_validate(fields)
        parts = [fields[key] for key in ("data", "tokenizer", "evaluation", "train")] + [
            fields["foresight"]["encoder"]
        ]
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
    from mirai_bench.data.codes import open_codes
    from mirai_bench.evaluate.extractors import open_extractor
    from mirai_bench.evaluate.references import open_reference
    from mirai_bench.foresight.encoders.zoo import entry_of, find_weights
    from mirai_bench.utils.assets import assets_folder
    from mirai_bench.utils.device import resolve_device

    device, encoder, protocol = resolve_device(config), config.foresight.encoder, config.evaluation.protocol
    if config.foresight.uses_encoder and encoder.name != "masked_tokens":
        find_weights(encoder.name, entry_of(encoder.name), encoder.weights, assets_folder(config))
    images = open_codes(config, "train", device).num_images
    if config.train.batch_size > images:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but the training split has {images} images: write less"
        )
    open_reference(config, protocol.reference, open_extractor(config, protocol.extractor, device))
