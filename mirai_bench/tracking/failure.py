"""Why an attempt to train a run ended, and whether another one would end in the same way."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import NamedTuple

from mirai_bench.utils.errors import UserError


class RunFailed(Exception):
    """The run cannot continue, and another attempt would end in the same way.

    failed.json holds the reason.
    """

    def __init__(self, reason: str, step: int | None = None) -> None:
        super().__init__(reason)
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        # An exception is pickled without `step`, and travels from a worker to its trial.
        return RunFailed, (str(self), self.step)


# Errors of the code, or of what it is given: the same step would end in the same way again.
LASTING = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    ImportError,
    RecursionError,
)
# Of other errors of torch, which is mostly right to try again, those that say that shapes do not fit.
SHAPES = re.compile(
    r"size of tensor|shapes? .*cannot be|must match|mat1 and mat2|expected .* dtype|same dtype"
)


def is_final(error: BaseException) -> bool:
    """Tells whether another attempt would end in the same way.

    A worker that is lost, a device that is broken, or storage that is away may be well again.
    """
    if isinstance(error, (RunFailed, UserError, *LASTING)):
        return True
    return type(error) is RuntimeError and SHAPES.search(str(error)) is not None


class Failure(NamedTuple):
    """The content of failed.json: why an attempt ended, and what the next one should change."""

    reason: str
    step: int | None = None
    final: bool = False
    """Whether another attempt would end in the same way."""
    micro_batches: int | None = None
    """After an out-of-memory error: the number of micro-batches that the next attempt uses."""
    traceback: str | None = None
    """Where the error arose, unless its message is meant for the user."""

    @classmethod
    def of(cls, error: BaseException, micro_batches: int | None = None) -> Failure:
        """Describes an error, with the place in the code where it arose if it was not foreseen."""
        step = getattr(error, "step", None)
        final = is_final(error)
        if isinstance(error, (RunFailed, UserError)):
            return cls(str(error), step, final, micro_batches)
        reason = f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        if frames:
            last = frames[-1]
            reason += f" ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
        return cls(reason, step, final, micro_batches, "".join(traceback.format_exception(error)))

    def __str__(self) -> str:
        return self.reason if self.step is None else f"{self.reason} (step {self.step})"
