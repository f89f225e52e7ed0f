"""The cells of a measurement, one after the other: skipped if done, and a row even if they fail."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator

import torch

from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.targets import Row
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import is_out_of_memory
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)


def measure_cells(
    options: Options, kind: str, cells: list[Row], measure: Callable[..., list[Row]]
) -> Iterator[Row]:
    """Yields the rows of each cell as soon as they are measured.

    A cell holds the arguments of `measure` that tell it from others. One that an earlier call has
    measured is skipped, and none is begun after the time that the options give. A cell that fails
    is a row that says so, because the others took minutes of a GPU.
    """
    for cell in progress(cells, f"benchmark {kind}", len(cells), "cells"):
        earlier = options.finished(kind, cell)
        if earlier:
            yield from earlier
            continue
        if options.is_late():
            log.info(f"{kind} {cell}: not begun, the time is over")
            continue
        release(options.device)
        try:
            rows = measure(**cell)
        except UserError:
            raise
        except Exception as error:
            rows = [{"kind": kind, "status": status_of(error), **cell}]
            log.info(f"{kind} {cell}: {rows[0]['status']}", exc_info=not is_out_of_memory(error))
        yield from rows


def status_of(error: Exception) -> str:
    """Returns what a row says of a cell that ended in this error."""
    if is_out_of_memory(error):
        return "out of memory"
    first_line = str(error).partition("\n")[0]
    return f"failed: {type(error).__name__}: {first_line}"


def release(device: torch.device) -> None:
    """Gives back the memory of a GPU that the last cell held."""
    if device.type != "cuda":
        return
    torch.compiler.reset()  # compiled code holds what it was compiled for
    gc.collect()
    torch.cuda.empty_cache()
