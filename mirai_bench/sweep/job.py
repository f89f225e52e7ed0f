"""What the trials of a sweep know, how driver and trials communicate, and the check before training.

Driver and trials communicate by files in the folder of runs, which all nodes share.
"""

from __future__ import annotations

import json
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mirai_bench.config.run_config import MachineConfig, RunConfig
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json


def share_of_worker(machine: MachineConfig) -> dict[str, float]:
    """Returns the resources that one process of a trial takes, by Ray's names."""
    shares = {"CPU": machine.cpus / machine.workers, "GPU": machine.gpus / machine.workers}
    return {name: amount for name, amount in shares.items() if amount}


@dataclass(frozen=True)
class Job:
    """The cells of a sweep, and the files by which driver and trials communicate."""

    configs: list[dict[str, Any]]
    """The configuration of each cell, in the order of execution."""
    check_file: Path
    """{"wrong": […]}, written by the first trial. Nothing is trained if anything is wrong."""
    stop_file: Path
    """As soon as it exists, runs save a checkpoint and leave."""
    seen_file: Path
    """Created by the driver under a new name each time. A node that does not see it has another folder of runs."""
    processes_per_node: int = 1
    """Upper bound on the processes that share the memory of one node."""

    @classmethod
    def beside(cls, configs: list[dict[str, Any]], folder: Path, name: str) -> Job:
        """Returns a job whose files lie in `folder` and begin with `name`."""
        seen = folder / f"{name}.seen-{uuid.uuid4().hex}"
        return cls(configs, folder / f"{name}.check", folder / f"{name}.stop", seen)

    def begin(self) -> None:
        """Removes the files left by an earlier driver. Called by the driver once it holds the sweep's lock."""
        prefix = self.seen_file.name.split(".seen-")[0]
        for left in (self.check_file, self.stop_file, *self.seen_file.parent.glob(f"{prefix}.seen-*")):
            left.unlink(missing_ok=True)
        self.seen_file.touch()

    def accepted(self) -> bool:
        """Tells whether the cells passed the check. The first trial that asks makes it while the others wait.

        Raises UserError if this node does not share the driver's folder of runs.
        """
        if not self.seen_file.is_file():
            from mirai_bench.utils.distributed import not_shared

            raise not_shared(self.seen_file.parents[1], [socket.gethostname()])
        with FileLock(f"{self.check_file}.lock"):
            if not self.check_file.is_file():
                write_json(self.check_file, {"wrong": preflight(self.configs, self.processes_per_node)})
        return not self.wrong()

    def wrong(self) -> list[str] | None:
        """Returns what the check found wrong, or None if it has not been made yet."""
        if not self.check_file.is_file():
            return None
        return json.loads(self.check_file.read_bytes())["wrong"]


def preflight(configs: list[dict[str, Any]], beside: int = 1) -> list[str]:
    """Checks all cells before training and returns one message per problem.

    `beside` is the number of processes that share a machine's memory. Afterwards, what all cells are measured with
    (extractor and reference) is in the cache.
    """
    from mirai_bench.train.memory import check_memory
    from mirai_bench.train.trainer import resolve_hardware

    messages: list[str] = []
    checked: set[str] = set()
    for fields in configs:
        config = RunConfig.model_validate(fields)
        key = _what_is_checked(config, fields)
        try:
            check_memory(config, resolve_hardware(config), world=config.machine.workers, beside=beside)
            if key not in checked:
                checked.add(key)
                _check(config)
        except UserError as error:
            messages.append(str(error))
    return list(dict.fromkeys(messages))


def _what_is_checked(config: RunConfig, fields: dict[str, Any]) -> str:
    """Returns what `_check` depends on. Two cells that agree in it need one check."""
    sections = [fields[name] for name in ("data", "tokenizer", "evaluation", "train")]
    return json.dumps([*sections, fields["foresight"]["encoder"], config.foresight.uses_encoder])


def _check(config: RunConfig) -> None:
    """Opens what a run of this config needs. Raises UserError for what is missing."""
    from mirai_bench.data.codes import open_codes
    from mirai_bench.evaluate.extractors import open_extractor
    from mirai_bench.evaluate.references import open_reference
    from mirai_bench.foresight.encoders.zoo import entry_of, find_weights
    from mirai_bench.utils.assets import assets_folder
    from mirai_bench.utils.device import resolve_device

    device = resolve_device(config.machine.device)
    encoder = config.foresight.encoder
    protocol = config.evaluation.protocol
    if config.foresight.uses_encoder and encoder.name != "masked_tokens":
        entry = entry_of(encoder.name)
        find_weights(encoder.name, entry, encoder.weights, assets_folder(config.machine.assets))
    images = open_codes(config, "train", device).num_images
    if config.train.batch_size > images:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but the training split has {images} images: write less"
        )
    open_reference(config, protocol.reference, open_extractor(config, protocol.extractor, device))
