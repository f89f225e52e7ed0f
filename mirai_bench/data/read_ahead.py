"""The batches of a training, of which the next one is read while a step is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

from mirai_bench.data.batch import Batch, Place, Read
from mirai_bench.data.codes import Codes


class Ahead(NamedTuple):
    """A batch that is being read."""

    step: int
    read: Future[Read]


class Batches:
    """The function step → batch of one rank.

    What a batch needs from files is read by a thread of its own during the step before. The thread
    leaves the device alone. A batch is a function of the step, however it was read.
    """

    def __init__(
        self,
        codes: Codes,
        steps: int,
        place: Callable[[int], Place],
        needs_pixels: Callable[[int], bool],
    ) -> None:
        """`place` and `needs_pixels` are asked of a step. Step `steps` is not read ahead."""
        self.codes = codes
        self.steps = steps
        self.place = place
        self.needs_pixels = needs_pixels
        self._ahead: Ahead | None = None

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "read-ahead")

    def at(self, step: int) -> Batch:
        """Returns the batch of a step, and begins to read the next one.

        Raises what reading the batch has raised.
        """
        place = self.place(step)
        with_pixels = self.needs_pixels(step)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.step == step:
            read = ahead.read.result()
        else:
            read = self.codes.read(place, with_pixels)
        if step + 1 < self.steps:
            self._begin(step + 1)
        return self.codes.batch_at(place, read, with_pixels)

    def _begin(self, step: int) -> None:
        with_pixels = self.needs_pixels(step)
        if self.codes.reads_files(with_pixels):
            place = self.place(step)
            self._ahead = Ahead(step, self._thread.submit(self.codes.read, place, with_pixels))
