"""A sweep file: its arms and seeds become the cells of a sweep, its section `search:` is tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mirai_bench.config.checking import checked
from mirai_bench.config.load import SWEEPS, Unfit, build_run, merge, parse_sets, read_profile
from mirai_bench.config.official import expand_official
from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sections import Amount, Name, Positive, PositiveAmount, Section, Seed
from mirai_bench.config.variation import varied_name, varying
from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.hashing import digest

# ---- the content of a file

# Values to draw one of.
Choices = Annotated[tuple[Any, ...], Field(min_length=1)]


class Range(Section):
    """An interval that the values of a search are drawn from."""

    low: Annotated[float, Field(ge=-1e38, le=1e38)]
    """Lower end."""
    high: Annotated[float, Field(ge=-1e38, le=1e38)]
    """Upper end."""
    log: bool = False
    """Whether values are drawn uniformly in the logarithm."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        # Zero has no logarithm.
        if self.low >= self.high or (self.log and self.low <= 0):
            more = ", low > 0 with log: true" if self.log else ""
            raise ValueError(f"low is {self.low} and high is {self.high}: write low < high{more}")
        return self


# What the values of some fields are drawn from.
Space = Annotated[dict[str, Range | Choices], Field(min_length=1)]


class Search(Section):
    """Tuning of arms, one after the other: `python -m mirai_bench.sweep search FILE`.

    Its runs are in no table of arms.
    """

    arms: Annotated[dict[Name, Space], Field(min_length=1)]
    """For each arm that is tuned, what the values of its fields are drawn from: \
`foresight.weight: {low: 0.1, high: 10, log: true}`, or a list of choices."""
    samples: Annotated[int, Field(ge=1, le=10_000)] | Literal["all"] = 16
    """Number of configurations that are drawn, or `all`: every combination of the choices, once."""
    seeds: tuple[Seed, ...] = ()
    """The seeds that each configuration is trained with. By default the first one of the sweep. \
Seeds that tables use make their results look better than they are."""
    metric: str = "heldout_ntp"
    """The metric that configurations are compared by: its mean over the seeds, of a Fréchet \
distance the geometric mean."""
    slack: Amount | None = None
    """A configuration counts only if its held-out loss is within so many nats of the best one."""
    seconds: PositiveAmount | None = None
    """A configuration counts only if its training took at most so many seconds, so that \
configurations of one cost are compared."""
    scheduler: Literal["asha", "none"] = "asha"
    """Whether runs that lag behind are stopped early (successive halving, ASHA), or every run is \
trained to its end. Halving judges runs in the middle of their learning-rate schedule."""
    reduction: Annotated[int, Field(ge=2, lt=2**31)] = 3
    """Reduction factor of ASHA: one run in this many continues at each rung."""
    seed: Seed = 0
    """Seed of the drawn values."""

    @model_validator(mode="after")
    def _check(self) -> Search:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}: each seed once")
        if len(self.seeds) > 1 and self.scheduler == "asha":
            # ASHA compares runs, not configurations, and would stop one seed of a configuration.
            raise ValueError(f"seeds is {list(self.seeds)} with scheduler asha: write scheduler: none")
        fields = [item for space in self.arms.values() for item in space.items()]
        ranges = [name for name, values in fields if isinstance(values, Range)]
        if self.samples == "all" and ranges:
            raise ValueError(
                f"samples is all, but {ranges[0]} is a range: write a list of values, or a number"
            )
        return self

    def num_configurations(self, arm: str) -> int:
        """Returns the number of configurations of an arm that are compared."""
        if self.samples != "all":
            return self.samples
        return math.prod(len(values) for values in self.arms[arm].values() if not isinstance(values, Range))

    def num_runs(self, arm: str) -> int:
        """Returns the number of runs of an arm: one for each configuration and seed."""
        return self.num_configurations(arm) * max(1, len(self.seeds))


class Decision(Section):
    """How a sweep decides. It is written before the first run, and its hash is in the sweep's record."""

    primary: str | None = None
    """The metric that decides, instead of the profile's `evaluation.primary`."""
    looks: tuple[Annotated[int, Field(ge=2, lt=2**31)], ...] = ()
    """Numbers of seeds at which verdicts are given, for instance [6, 12, 24]. They share one level of \
5 %. With fewer seeds than the first look a sweep is a pilot. Without looks no verdicts are given."""
    pilot: Positive | None = None
    """Number of seeds that a command trains by default, fewer than the first look. They describe, and \
decide nothing."""
    smallest_effect: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The smallest effect of interest: of a Fréchet distance as a share (0.15 is 15 % less, or as much \
more), of another metric in its own units. An arm whose whole interval lies within it is decided, too."""
    families: dict[str, tuple[Name, ...]] = Field(default={})
    """Arms that are tested together (Holm's correction), by a name for each family. By default all arms \
are one family. An arm of no family is described and gets no verdict."""
    exclusions: tuple[str, ...] = ()
    """Which runs will be left out, each rule as a sentence. By default none; failed runs are missing."""

    @model_validator(mode="after")
    def _check_looks(self) -> Decision:
        looks = list(self.looks)
        if looks != sorted(set(looks)):
            raise ValueError(f"looks is {looks}: write increasing numbers of seeds, such as [6, 12, 24]")
        if self.smallest_effect is not None and not looks:
            raise ValueError(f"smallest_effect is {self.smallest_effect} without looks: write both")
        if self.families and not looks:
            raise ValueError("families without looks: write both, for instance looks: [6, 12, 24]")
        if self.pilot is not None and (not looks or self.pilot >= looks[0]):
            raise ValueError(
                f"pilot is {self.pilot} with looks {looks}: write fewer seeds than the first look"
            )
        return self


class SweepFile(Decision):
    """The content of a sweep file."""

    axis: Name
    """Name of the sweep in MLflow, tables and figures."""
    question: str
    """What the arms are compared for, in one line."""
    profile: str = "digits"
    """The profile: data, model size, schedule and evaluation of every arm."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """The seeds. Every arm is trained with each of them."""
    baseline: Name = "baseline"
    """The arm that tables compare the others with."""
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """Foresight fields of each arm, which override those of the profile, and under `regularizer` the \
section of that name. An arm whose regularizer the data of the profile cannot carry is left out."""
    # Not MachineConfig: what it leaves out is the profile's, and not the default.
    machine: dict[str, Any] = Field(default={})
    """Fields of `machine`, which override those of the profile."""
    search: Search | None = None
    """Tuning of arms, which is not part of the sweep."""

    @model_validator(mode="after")
    def _check(self) -> SweepFile:
        advice = f"which is not an arm: write one of {', '.join(self.arms)}"
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}: each seed once")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline is {self.baseline!r}, {advice}")
        for arm in self.search.arms if self.search else ():
            if arm not in self.arms:
                raise ValueError(f"search.arms has {arm!r}, {advice}")
        if self.looks and self.looks[-1] > len(self.seeds):
            raise ValueError(
                f"looks ends at {self.looks[-1]} seeds, but seeds has {len(self.seeds)}: list as many"
            )
        in_families = [arm for family in self.families.values() for arm in family]
        for arm in in_families:
            if arm not in self.arms or arm == self.baseline:
                raise ValueError(f"families names {arm!r}, {advice}, without the baseline")
            if in_families.count(arm) > 1:
                raise ValueError(f"families names {arm!r} twice: an arm is tested in one family")
        return self

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """Returns the seeds of the pilot, or else of the first look, or all if no looks are planned."""
        return self.seeds[: self.pilot or self.looks[0]] if self.looks else self.seeds

    def registered(self, primary: str | None) -> dict[str, Any]:
        """Returns what decides, as the record of the sweep holds it, with its hash.

        `primary` is the primary metric that the profile names.
        """
        fields = self.model_dump(mode="json", include=set(Decision.model_fields))
        fields |= {"primary": self.primary or primary, "baseline": self.baseline}
        fields |= {"arms": list(self.arms), "seeds": list(self.seeds)}
        return fields | {"hash": digest(fields)}


# ---- the cells


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: what a trial trains."""

    arm: str
    config: RunConfig

    @property
    def seed(self) -> int:
        """Returns the seed of the run."""
        return self.config.seed

    @cached_property
    def fingerprint(self) -> str:
        """Returns the fingerprint of the run, computed once."""
        return self.config.fingerprint()

    @property
    def run_path(self) -> Path:
        """Returns the path of the run's folder."""
        return self.config.machine.runs / self.fingerprint


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep, and what its table needs to know."""

    axis: str
    question: str
    baseline: str
    cells: tuple[Cell, ...]
    """Seed by seed, with the arms in the order of the file, so that a sweep that is cut short can \
still be compared."""
    registered: dict[str, Any] = field(default_factory=dict)
    """What decides, as the file says now: the fields of `Decision`, baseline, arms, seeds, and a hash."""
    left_out: dict[str, str] = field(default_factory=dict)
    """The arms that the data of the profile cannot carry, and why."""
    settings: tuple[str, ...] = ()
    """The `--set` options by which its runs differ from the file's, and which its name tells."""

    @property
    def arms(self) -> list[str]:
        """Returns the names of the arms, in the order of the file."""
        return list(dict.fromkeys(cell.arm for cell in self.cells))


def find_sweep(name: str) -> Path:
    """Returns the path of a sweep file, which is given as a path, or by its name if it ships with us.

    Raises UserError, with the names that there are, if there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {file.stem: file for file in sorted(SWEEPS.glob("*.yaml"))}
    if path.parent == Path() and path.suffix in ("", ".yaml") and path.stem in known:
        return known[path.stem]
    if path.suffix == "":
        raise unknown("sweep", name, known)
    near = get_close_matches(name, [*map(str, path.parent.glob("*.yaml")), *known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"There is no file {name!r}.{hint} By their names you can write {', '.join(known)}")


def load_sweep(
    source: Path | Mapping[str, Any],
    *,
    profile: str | None = None,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> Sweep:
    """Returns the sweep of a file, or of its content, under the choices of a command line.

    `profile` and `seeds` replace those of the file, of which by default those of the pilot or the first
    look are taken. `only` keeps these arms; the baseline is kept
    only if it is among them. `settings` are `--set` options of every cell. An arm that the data cannot
    carry is left out, unless `only` names it. Raises UserError for whatever is wrong.
    """
    # 1. The file, and what the command line chooses of it.
    where = str(source) if isinstance(source, Path) else "the sweep"
    beside = source.parent if isinstance(source, Path) else None
    fields = read_yaml(source) if isinstance(source, Path) else dict(source)
    file = checked(SweepFile, fields, where)
    for arm in only:
        if arm not in file.arms:
            raise unknown("arm", arm, file.arms)
    base = merge(read_profile(profile or file.profile, beside), {"machine": file.machine})
    if file.primary is not None:
        base = merge(base, {"evaluation": {"primary": file.primary}})
    overrides = parse_sets(settings)
    if "seed" in overrides:
        raise UserError(f"--set seed={overrides['seed']}: the seeds of a sweep are a list; write --seeds")
    arms = [arm for arm in file.arms if arm in only or not only]
    # 2. A cell per seed and arm. Here the fields of an arm are checked, with the profile's.
    cells = []
    left_out = {}
    for seed in dict.fromkeys(seeds or file.first_seeds):  # a seed that is given twice is trained once
        for arm in arms:
            sections = sections_of(file.arms[arm])
            fields = merge(base, {"seed": seed} | sections)
            if "regularizer" in sections:  # that of the profile is replaced, which may be another one
                fields["regularizer"] = sections["regularizer"]
            try:
                cells.append(Cell(arm, build_run(fields, f"{where}, arm {arm}", overrides)))
            except Unfit as error:
                if arm in only:
                    raise
                left_out[arm] = str(error)
    _refuse_twins(where, cells)
    registered = file.registered(cells[0].config.evaluation.primary)
    varied = varying(settings)
    axis = varied_name(file.axis, varied)
    return Sweep(axis, file.question, file.baseline, tuple(cells), registered, left_out, varied)


def sections_of(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections of a configuration that an arm of a sweep file fills."""
    foresight = dict(arm)
    regularizer = foresight.pop("regularizer", None)
    sections = {"foresight": expand_official(foresight)}
    return sections if regularizer is None else sections | {"regularizer": regularizer}


def _refuse_twins(where: str, cells: list[Cell]) -> None:
    """Raises UserError if two arms have the same fingerprint with the same seed."""
    # They would share one run folder, and tables would show it as two arms.
    first: dict[str, Cell] = {}  # by fingerprint, which covers the seed
    for cell in cells:
        twin = first.setdefault(cell.fingerprint, cell)
        if twin is not cell:
            raise UserError(
                f"{where}: arms {twin.arm!r} and {cell.arm!r} (seed {cell.seed}) are the same "
                "experiment under two names: keep one"
            )
