"""One arm of the table of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mirai_bench.results.paper import Paper
from mirai_bench.results.stats import Estimate


@dataclass(frozen=True)
class Row:
    """One arm."""

    arm: str
    planned: int
    """Number of seeds of the sweep."""
    n: int
    """Number of seeds with a value of the primary metric."""
    values: Mapping[str, Estimate | None]
    """For each metric its mean over the seeds."""
    differences: dict[str, Estimate | None]
    """For each metric its difference to the baseline, paired by seed, with p corrected over the \
arms; of a Fréchet distance that of the logarithms. Empty for the baseline itself."""
    verdict: str | None
    """The verdict by the primary metric, if looks are planned and this arm is in a family. TEACHER if \
the arm's own teacher would give it."""
    paper: Mapping[str, Paper]
    """For some metrics the paper's value."""
    flops: Estimate | None
    """Training FLOPs so far over the baseline's. None if the cost of an encoder is not known."""
    seconds: Estimate | None
    """Training time so far over that of the baseline with the same seed."""
