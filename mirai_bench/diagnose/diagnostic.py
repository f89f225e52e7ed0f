"""What a diagnostic is: a question, and a function that answers it for one checkpoint of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mirai_bench.diagnose.scope import Scope
from mirai_bench.diagnose.subject import Subject
from mirai_bench.utils import plugins
from mirai_bench.utils.hashing import digest


class Finding(NamedTuple):
    """What a diagnostic found out about one checkpoint."""

    values: dict[str, float]
    """Numbers by name. `lds@2` is that of the states after block 2, 0 being the embeddings."""
    detail: dict[str, Any]
    """What figures need beyond these: nested lists of numbers. May be empty."""


@dataclass(frozen=True)
class Diagnostic:
    """An entry of DIAGNOSTICS."""

    question: str
    """What it answers, in one sentence."""
    measure: Callable[[Subject], Finding]
    """Answers it. Raises NotMeasurable where it does not apply."""
    headline: dict[str, str] = field(default_factory=dict)
    """The values that tables show and that are compared with the gain, each with its unit and what it
    means."""
    version: int = 1
    """Is raised when the same checkpoint gives other numbers than before."""

    def digest(self, name: str, scope: Scope) -> str:
        """Returns 12 hexadecimal digits of the hash of all that decides what its numbers mean."""
        code = plugins.identity_of([("diagnostic", name)])  # of a built-in one there is none
        return digest({"name": name, "version": self.version} | code | scope.model_dump(mode="json"))
