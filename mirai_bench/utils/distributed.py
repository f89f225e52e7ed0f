"""The processes of one data-parallel run: their group, what rank 0 decides for all, and the folder that all must see.

The group is made by whoever starts them: torchrun (here, from its environment), or Ray Train for a cell of a sweep.
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


# Of a collective: the others wait in one while rank 0 measures what all have sampled, or waits for a teacher that another run trains. A
# process that is gone is seen by whoever started it, not by this.
PATIENCE = timedelta(days=2)


class Ranks(NamedTuple):
    """This process among those that evaluate together; more than one need a process group."""

    rank: int = 0
    world: int = 1
    group: Any = None
    """torch.distributed's, of results on the CPU; None: the default one"""


def rank_and_world() -> tuple[int, int]:
    """Of the process group, where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the group that torchrun announces in the environment; nothing otherwise."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def of_rank_0(ask: Callable[[], T]) -> T:
    """Rank 0's answer, at every rank; so is its UserError. What each rank read for itself (is the run done?) could differ between two."""
    rank, world = rank_and_world()
    if world == 1:
        return ask()
    answer: list = [None, None]
    if rank == 0:
        try:
            answer[0] = ask()
        except UserError as error:
            answer[1] = str(error)
    torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def check_shared(folder: Path) -> None:
    """Rank 0 leaves a file in `folder`, and every rank looks for it. Raises UserError, at every rank, where one does not see it."""
    rank, world = rank_and_world()
    if world == 1:
        return
    token = of_rank_0(
        lambda: uuid.uuid4().hex
    )  # a new name each time: network file systems remember for a while what was not there
    file = folder / f".seen-{token}"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    torch.distributed.barrier()
    blind: list[str | None] = [None] * world
    torch.distributed.all_gather_object(blind, None if file.exists() else socket.gethostname())
    if rank == 0:
        file.unlink()
    if any(blind):
        raise not_shared(folder, sorted({name for name in blind if name}))


def not_shared(folder: Path, hosts: list[str]) -> UserError:
    return UserError(
        f"{folder} is not the same folder on all nodes ({', '.join(hosts)} sees another): write machine.runs: a folder on storage that "
        "all nodes share"
    )
