"""What the trials of a sweep know, and the check of all cells before training.

Driver and trials communicate by files in the folder of runs, which all nodes share.
"""

from __future__ import annotations

import json
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirai_bench.config.machine_config import MachineConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import locked, write_json
from mirai_bench.utils.plugins import Plugin, loaded

if TYPE_CHECKING:
    import torch


def last_line(error: BaseException) -> str:
    """Returns the last line of an error's message."""
    # Ray's messages hold the whole traceback of the worker, which ends with the error itself.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def share_of_worker(machine: MachineConfig) -> dict[str, float]:
    """Returns the resources that one process of a trial takes, by Ray's names."""
    shares = {"CPU": machine.cpus / machine.workers, "GPU": machine.gpus / machine.workers}
    # A resource of amount 0 is left out: a node without GPUs does not list any.
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
    """Created by the driver under a new name each time. A node that does not see it has another
    folder of runs."""
    plugins: tuple[Plugin, ...] = ()
    """What trials import before they read a configuration."""
    processes_per_node: int = 1
    """Upper bound on the processes that share the memory of one node."""

    @classmethod
    def beside(cls, configs: list[dict[str, Any]], folder: Path, name: str) -> Job:
        """Returns a job whose files lie in `folder` and begin with `name`."""
        # A new name each time, because a network file system caches for a while what exists.
        seen = folder / f"{name}.seen-{uuid.uuid4().hex}"
        return cls(configs, folder / f"{name}.check", folder / f"{name}.stop", seen, loaded())

    def begin(self) -> None:
        """Removes the files left by an earlier driver. Called once the driver holds its lock."""
        prefix = self.seen_file.name.split(".seen-")[0]
        seen_before = self.seen_file.parent.glob(f"{prefix}.seen-*")
        for left in (self.check_file, self.stop_file, *seen_before):
            left.unlink(missing_ok=True)
        self.seen_file.touch()

    def accepted(self) -> bool:
        """Tells whether the cells passed the check. The first trial that asks makes it.

        Raises UserError if this node does not share the driver's folder of runs.
        """
        if not self.seen_file.is_file():
            from mirai_bench.utils.distributed import not_shared

            raise not_shared(self.seen_file.parents[1], [socket.gethostname()])
        with locked(Path(f"{self.check_file}.lock"), wait=True):  # the other trials wait here for the result
            if not self.check_file.is_file():
                wrong = preflight(self.configs, self.processes_per_node)
                write_json(self.check_file, {"wrong": wrong})
        return not self.wrong()

    def wrong(self) -> list[str] | None:
        """Returns what the check found wrong, or None if it has not been made yet."""
        if not self.check_file.is_file():
            return None
        return json.loads(self.check_file.read_bytes())["wrong"]


def preflight(configs: list[dict[str, Any]], beside: int = 1) -> list[str]:
    """Checks all cells before training and returns one message per problem.

    `beside` is the number of processes that share a machine's memory. Afterwards, what all cells
    are measured with (extractor and reference) is in the cache.
    """
    from mirai_bench.train.memory import check_memory
    from mirai_bench.train.trainer import resolve_hardware

    # All problems are collected, so that one start of the sweep shows all of them: each costs a wait.
    messages: list[str] = []
    checked: set[str] = set()
    for fields in configs:
        config = RunConfig.model_validate(fields)
        # What `_check` depends on. Cells that agree in it need one check: most arms of a sweep do.
        sections = [fields[name] for name in ("data", "tokenizer", "evaluation", "train")]
        uses_encoder = config.foresight.uses_encoder
        key = json.dumps([*sections, fields["foresight"]["encoder"], uses_encoder])
        try:
            hardware = resolve_hardware(config)
            check_memory(config, hardware, world=config.machine.workers, beside=beside)
            if key not in checked:
                checked.add(key)
                _check(config, hardware.device)
        except UserError as error:
            messages.append(str(error))
    return list(dict.fromkeys(messages))  # without repetitions, in order


def _check(config: RunConfig, device: torch.device) -> None:
    """Opens what a run of this config needs. Raises UserError for what is missing."""
    # Imported here, because these modules import torch and the driver imports this one.
    from mirai_bench.data.codes import open_codes
    from mirai_bench.evaluate.evaluation import Evaluator
    from mirai_bench.foresight.encoders.build import check_encoder

    if config.foresight.uses_encoder:
        check_encoder(config)
    # Raises UserError if the batch is larger than the data.
    open_codes(config, "train", device).steps_per_epoch(config.train.batch_size)
    Evaluator(config, device).open()
