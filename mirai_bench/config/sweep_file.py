"""What a sweep file's `search:` section may say. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from mirai_bench.config.load import build_run, checked, merge, parse_sets, read_profile, read_yaml
from mirai_bench.config.official import expand_official
from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sections import Section
from mirai_bench.utils.errors import UserError, unknown

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


class SweepFile(Section):
    axis: Name
    """names the sweep in MLflow, tables and figures"""
    question: str
    """what the arms are compared for, in one line"""
    profile: str = "digits"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
    baseline: Name = "baseline"
    """the arm that tables compare the others with"""
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """foresight fields of each arm, over the profile's"""
    machine: dict[str, Any] = Field(default={})
    """machine fields, over the profile's"""
    search: Search | None = None

    @model_validator(mode="after")
    def _check(self) -> SweepFile:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}: each seed once")
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline is {self.baseline!r}, which is not an arm: write one of {', '.join(self.arms)}"
            )
        if self.search is not None and self.search.arm not in self.arms:
            raise ValueError(
                f"search.arm is {self.search.arm!r}, which is not an arm: write one of {', '.join(self.arms)}"
            )
        return self


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: what a trial trains."""

    arm: str
    config: RunConfig

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def fingerprint(self) -> str:
        return self.config.fingerprint()


@dataclass(frozen=True)
class Sweep:
    axis: str
    question: str
    baseline: str
    cells: tuple[Cell, ...]
    """seed by seed, arms in the file's order: a sweep that is cut short still compares"""

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(cell.arm for cell in self.cells))


def load_sweep(
    path: Path,
    *,
    profile: str | None = None,
    seeds: Iterable[int] = (),
    only: Iterable[str] = (),
    settings: Iterable[str] = (),
) -> Sweep:
    """A sweep file and the command line's choices → cells. `only` keeps these arms (the baseline is one like the others)."""
    file = checked(SweepFile, read_yaml(path), str(path))
    for arm in only:
        if arm not in file.arms:
            raise unknown("arm", arm, file.arms)
    base = merge(read_profile(profile or file.profile, path.parent), {"machine": file.machine})
    arms = {arm: fields for arm, fields in file.arms.items() if not only or arm in set(only)}
    sets, kept = parse_sets(settings), tuple(dict.fromkeys(seeds)) or file.seeds
    cells = [
        Cell(
            arm,
            build_run(
                merge(base, {"foresight": expand_official(fields), "seed": seed}), f"{path}, arm {arm}", sets
            ),
        )
        for seed in kept
        for arm, fields in arms.items()
    ]
    _refuse_twins(path, cells)
    return Sweep(file.axis, file.question, file.baseline, tuple(cells))


def _refuse_twins(path: Path, cells: list[Cell]) -> None:
    first: dict[str, Cell] = {}
    for cell in cells:
        twin = first.setdefault(cell.fingerprint, cell)
        if twin is not cell:
            raise UserError(
                f"{path}: arms {twin.arm!r} and {cell.arm!r} (seed {cell.seed}) are the same experiment under two names: keep one"
            )
