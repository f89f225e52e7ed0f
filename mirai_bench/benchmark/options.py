"""The options that all measurements share, and the head of their JSON files."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mirai_bench.benchmark.peer.checkout import Peer, load_peer
from mirai_bench.benchmark.targets import Row
from mirai_bench.benchmark.timing import WARMUP_ROUNDS
from mirai_bench.tracking import provenance
from mirai_bench.utils.device import cpu_name, device_name, resolve_device
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import read_json


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
    earlier: tuple[Row, ...] = ()
    """What an earlier call has measured on this machine with this code."""
    deadline: float = math.inf
    """The time (of time.monotonic) after which no cell is begun."""

    @classmethod
    def resolve(
        cls,
        device: str,
        rounds: int,
        threads: int,
        compile: bool | None,
        peers: Iterable[Path],
        seconds: float = math.inf,
    ) -> Options:
        """Returns the options of a command line. `compile` is None where the device decides.

        No cell is begun after so many `seconds` from now. Raises UserError if the device or a
        checkout cannot be used, or a number is too small.
        """
        if rounds < 1 or threads < 1:
            raise UserError(f"--rounds is {rounds} and --threads {threads}: write 1 or more")
        resolved = resolve_device(device)
        torch.set_num_threads(threads)
        compiled = resolved.type == "cuda" if compile is None else compile
        loaded = tuple(load_peer(path) for path in peers)
        return cls(resolved, rounds, threads, compiled, loaded, deadline=time.monotonic() + seconds)

    @property
    def on_gpu(self) -> bool:
        """Tells whether a GPU is measured."""
        return self.device.type == "cuda"

    def peer(self, wanted: Callable[[Peer], bool]) -> Peer | None:
        """Returns the first peer that is wanted, or None."""
        return next((peer for peer in self.peers if wanted(peer)), None)

    def finished(self, kind: str, cell: Row) -> list[Row]:
        """Returns the rows of a cell that an earlier call has measured."""
        wanted = {"kind": kind, "status": "measured", **cell}
        return [row for row in self.earlier if wanted.items() <= row.items()]

    def with_earlier(self, rows: list[Row]) -> list[Row]:
        """Returns the rows that the file is to hold: these, after those of other cells that it has.

        An earlier row is of the same cell if a new one has all that it says, but for the status: the very
        row that was taken over, or the new measurement of a cell that had failed.
        """

        def is_here(earlier: Row) -> bool:
            cell = {key: value for key, value in earlier.items() if key != "status"}
            return any(cell.items() <= row.items() for row in rows)

        return [row for row in self.earlier if not is_here(row)] + rows

    def is_late(self) -> bool:
        """Tells whether no further cell is to be begun."""
        return time.monotonic() > self.deadline

    def resume(self, file: Path | None) -> Options:
        """Returns the options with the rows of `file`, if this machine and code measured them."""
        if file is None or not file.is_file():
            return self
        found = read_json(file, "name another file, or remove it to measure again")
        now = self.head()
        same = all(found.get(name) == now[name] for name in ("versions", "git"))
        names = ("cpu", "gpu", "threads")
        same = same and all(found["machine"].get(name) == now["machine"][name] for name in names)
        return replace(self, earlier=tuple(found["rows"])) if same else self

    def head(self) -> dict[str, Any]:
        """Returns what a file says of all its rows: machine, versions and commit."""
        machine: dict[str, Any] = {"cpu": cpu_name()}
        machine["gpu"] = device_name(self.device) if self.on_gpu else None
        machine |= {"threads": self.threads, "load": os.getloadavg()}
        head = {"machine": machine, "versions": provenance.versions(), "git": provenance.git_state()}
        statistic = "median, first and third quartile of rounds that alternate"
        return head | {"rounds": self.rounds, "warmup_rounds": WARMUP_ROUNDS, "statistic": statistic}
