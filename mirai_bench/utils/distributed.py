"""The processes of one data-parallel run: their group, what rank 0 decides, the folder they share.

The group is made by whoever starts the processes: torchrun, whose environment is read here, or Ray
Train.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from mirai_bench.utils.errors import UserError

T = TypeVar("T")

# Timeout of collectives. It is long because the other ranks wait in one while rank 0 computes
# metrics or waits for another run. Dead processes are detected by torchrun or Ray, not by this
# timeout.
COLLECTIVE_TIMEOUT = timedelta(days=2)


class Ranks(NamedTuple):
    """Rank and world size of a distributed evaluation.

    With more than one process, a process group must exist.
    """

    rank: int = 0
    world: int = 1
    group: Any = None
    """The torch.distributed group that exchanges results on the CPU. None is the default group."""


def rank_and_world() -> tuple[int, int]:
    """Returns this process's rank and the number of processes.

    Without a process group they are 0 and 1.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def announced(*also: str) -> tuple[int, int]:
    """Returns the rank and the number of processes that the environment announces, or 0 and 1.

    Raises UserError if it announces several processes, and not RANK or one of the variables `also`:
    some platforms set WORLD_SIZE alone.
    """
    world = os.environ.get("WORLD_SIZE") or "1"
    missing = [name for name in ("RANK", *also) if not os.environ.get(name)]
    if world == "1":
        return 0, 1
    rank = os.environ.get("RANK", "")
    if missing or not world.isdecimal() or not rank.isdecimal() or int(rank) >= int(world):
        found = f"{', '.join(missing)} is not set" if missing else f"RANK is {rank!r}"
        raise UserError(
            f"WORLD_SIZE is {world!r} in the environment, but {found}: start the processes with torchrun, or "
            "unset WORLD_SIZE to run one process"
        )
    return int(rank), int(world)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the process group that torchrun announces in the environment.

    Does nothing if there is none.
    """
    if announced("MASTER_ADDR", "MASTER_PORT")[1] == 1:
        yield
        return
    if device.type == "cuda":
        # nccl uses the current device. By default that would be GPU 0 on every rank.
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def broadcast_from_rank0(ask: Callable[[], T]) -> T:
    """Evaluates `ask()` on rank 0 and broadcasts the result, or its UserError, to all ranks.

    Use it for anything that is read from a disk, which two ranks could otherwise see differently.
    """
    rank, world = rank_and_world()
    if world == 1:
        return ask()
    answer: list[Any] = [None]  # the result, or the UserError
    if rank == 0:
        try:
            answer[0] = ask()
        except UserError as error:
            answer[0] = error
    torch.distributed.broadcast_object_list(answer)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return answer[0]


def check_shared(folder: Path) -> None:
    """Checks that all ranks see the same `folder`.

    Raises UserError, on every rank, if one of them does not.

    Rank 0 creates a file in the folder and every rank looks for it. The file has a new name each
    time, because a network file system remembers for a while which files did not exist.
    """
    rank, world = rank_and_world()
    if world == 1:
        return
    # 1. Rank 0 creates a file.
    token = broadcast_from_rank0(lambda: uuid.uuid4().hex)
    file = folder / f".seen-{token}"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    torch.distributed.barrier()
    # 2. Every rank looks for it, and tells the others the name of its host if it does not see it.
    blind: list[str | None] = [None] * world
    torch.distributed.all_gather_object(blind, None if file.exists() else socket.gethostname())
    if rank == 0:  # all have looked by now
        file.unlink()
    hosts = sorted(set(filter(None, blind)))
    if hosts:
        raise not_shared(folder, hosts)


def not_shared(folder: Path, hosts: list[str]) -> UserError:
    """Returns the error for a folder that these hosts do not share with the others."""
    names = ", ".join(hosts)
    return UserError(
        f"{folder} is not the same folder on all nodes ({names} sees another): write machine.runs: "
        "a folder on storage that all nodes share"
    )
