"""What all measurements share: device, rounds, peers, and the head of their JSON."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mirai_bench.benchmark.peer.checkout import Peer, load_peer
from mirai_bench.tracking import provenance
from mirai_bench.utils.device import cpu_name
from mirai_bench.utils.errors import UserError


@dataclass(frozen=True)
class Options:
    device: torch.device
    rounds: int
    threads: int
    compile: bool
    peers: tuple[Path, ...]

    def head(self) -> dict[str, Any]:
        """Machine, versions, commit: the same for all rows of a file."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "machine": {"cpu": cpu_name(), "gpu": gpu, "threads": self.threads, "load": os.getloadavg()},
            "versions": provenance.versions(), "git": provenance.git_state(), "rounds": self.rounds, "warmup_rounds": 2,
            "statistic": "median, first and third quartile of rounds that alternate",
        }  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--rounds", type=int, default=9, help="that count, after two that do not (default: 9)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="default: on a GPU"
    )
    parser.add_argument(
        "--peer",
        type=Path,
        action="append",
        default=[],
        help="checkout of Mirai or LlamaGen; may be given twice",
    )
    parser.add_argument("--out", type=Path, help="JSON file, for instance reports/benchmarks/train_cpu.json")


def options_of(args: argparse.Namespace) -> Options:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but no CUDA device is visible: write --device cpu")
    if args.rounds < 1 or args.threads < 1:
        raise UserError(f"--rounds is {args.rounds} and --threads {args.threads}: write 1 or more")
    torch.set_num_threads(args.threads)
    compiled = args.device == "cuda" if args.compile is None else args.compile
    return Options(torch.device(args.device), args.rounds, args.threads, compiled, tuple(args.peer))


@cache
def _load(path: Path) -> Peer:
    return load_peer(path)


def peers_of(options: Options) -> list[Peer]:
    return [_load(path) for path in options.peers]


def pick(peers: list[Peer], wanted: Callable[[Peer], bool]) -> Peer | None:
    return next((peer for peer in peers if wanted(peer)), None)
