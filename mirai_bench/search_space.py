"""What a sweep file's `search:` section may say. No torch in here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from .foresight_config import Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]


class Range(Section):
    low: float
    high: float
    log: bool = False
    """drawn evenly in the logarithm"""

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low is {self.low} and high is {self.high}: write low < high{', low > 0 with log: true' * self.log}"
            )
        return self


class Search(Section):
    """Tuning, apart from the sweep: `python -m mirai_bench.sweep search FILE`. Its runs stop early and stand in no table of arms."""

    arm: Name
    """whose fields the values are laid over"""
    space: Annotated[dict[str, Range | Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    """foresight.weight: {low: 0.1, high: 10, log: true}, foresight.k: [1, 3, 9], …"""
    samples: Annotated[int, Field(ge=1, le=10_000)] = 16
    metric: str = "heldout_ntp"
    reduction: Annotated[int, Field(ge=2)] = 3
    """successive halving (ASHA): at each rung one in this many goes on"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """of the drawn values"""
