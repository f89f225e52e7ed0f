"""The options that all measurements share, and the head of their JSON files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mirai_bench.benchmark.peer.checkout import Peer, load_peer
from mirai_bench.benchmark.timing import WARMUP_ROUNDS
from mirai_bench.tracking import provenance
from mirai_bench.utils.device import cpu_name, device_name, resolve_device
from mirai_bench.utils.errors import UserError


@dataclass(frozen=True)
class Options:
    """What all measurements share."""

    device: torch.device
    rounds: int
    """Number of rounds that count."""
    threads: int
    """Number of CPU threads."""
    compile: bool = False
    """Whether training steps are compiled with torch.compile."""
    peers: tuple[Peer, ...] = ()
    """The official code to compare with."""

    @classmethod
    def resolve(
        cls, device: str, rounds: int, threads: int, compile: bool | None, peers: Iterable[Path]
    ) -> Options:
        """Returns the options of a command line. `compile` is None where the device decides.

        Raises UserError if the device or a checkout cannot be used, or a number is too small.
        """
        if rounds < 1 or threads < 1:
            raise UserError(f"--rounds is {rounds} and --threads {threads}: write 1 or more")
        resolved = resolve_device(device)
        torch.set_num_threads(threads)
        compiled = resolved.type == "cuda" if compile is None else compile
        return cls(resolved, rounds, threads, compiled, tuple(load_peer(path) for path in peers))

    @property
    def on_gpu(self) -> bool:
        """Tells whether a GPU is measured."""
        return self.device.type == "cuda"

    def peer(self, wanted: Callable[[Peer], bool]) -> Peer | None:
        """Returns the first peer that is wanted, or None."""
        return next((peer for peer in self.peers if wanted(peer)), None)

    def head(self) -> dict[str, Any]:
        """Returns what a file says of all its rows: machine, versions and commit."""
        machine: dict[str, Any] = {"cpu": cpu_name()}
        machine["gpu"] = device_name(self.device) if self.on_gpu else None
        machine |= {"threads": self.threads, "load": os.getloadavg()}
        head = {"machine": machine, "versions": provenance.versions(), "git": provenance.git_state()}
        statistic = "median, first and third quartile of rounds that alternate"
        return head | {"rounds": self.rounds, "warmup_rounds": WARMUP_ROUNDS, "statistic": statistic}
