"""Sweeps from Python: `run_sweep` trains what is missing of one, and `read_results` reads records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mirai_bench.config.checking import checked
from mirai_bench.config.load import as_settings
from mirai_bench.config.sections import Section, Seed
from mirai_bench.config.sweep_file import find_sweep
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.plugins import import_plugin

if TYPE_CHECKING:
    import pandas as pd

    from mirai_bench.results.frame import Results


@dataclass(frozen=True)
class FinishedSweep:
    """What `run_sweep` returns: which sweep it was, and where its runs are."""

    axis: str
    """Name of the sweep."""
    profile: str
    """Name of its profile."""
    runs: Path
    """Folder of runs, which holds its records."""
    failed: tuple[str, ...] = ()
    """For each cell that failed a line: its arm, its seed and the reason."""


class _Choices(Section):
    """The arguments of `run_sweep` beside the sweep. Nothing else checks them before they are used."""

    profile: Path | None
    seeds: tuple[Seed, ...]
    only: tuple[str, ...]
    settings: dict[str, Any]
    plugins: tuple[str, ...]
    max_concurrent: Annotated[int, Field(ge=1, strict=True)] | None
    address: str | None
    retries: Annotated[int, Field(ge=0, strict=True)]


def run_sweep(
    sweep: str | Path | Mapping[str, Any],
    *,
    profile: str | Path | None = None,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    max_concurrent: int | None = None,
    address: str | None = None,
    retries: int = 2,
) -> FinishedSweep:
    """Trains and evaluates what is missing of a sweep, as the command `sweep` does, and waits for it.

    Args:
        sweep: a sweep file, the name of one that ships with the package, or the content of one as a dict
            (`axis`, `question`, `seeds`, `arms`, …).
        profile: this profile instead of the sweep's: a name, or a file.
        seeds: these seeds instead of the sweep's.
        only: only these arms.
        settings: fields of the configuration, by their paths: `{"train.epochs": 1}`.
        plugins: modules that are imported first, here and in every trial. Plug-ins that are imported
            already need not be named.
        max_concurrent: number of concurrent trials. By default as many as fit.
        address: a Ray cluster to join. By default Ray is started on this machine.
        retries: attempts after a lost worker or a broken device.

    Returns:
        the sweep, for `read_results`. Cells that failed are named in `failed`.

    Raises:
        UserError: whatever is wrong with the arguments, before anything is trained.
    """
    from mirai_bench.sweep.driver import Options
    from mirai_bench.sweep.driver import run_sweep as train
    from mirai_bench.sweep.plan import folder_of, make_plan

    arguments = {
        "profile": profile,
        "seeds": seeds,
        "only": only,
        "settings": settings or {},
        "plugins": plugins,
        "max_concurrent": max_concurrent,
        "address": address,
        "retries": retries,
    }
    choices = checked(_Choices, arguments, "run_sweep")
    for module in choices.plugins:
        import_plugin(module)
    source = sweep if isinstance(sweep, Mapping) else find_sweep(str(sweep))
    plan = make_plan(
        source,
        profile=None if choices.profile is None else str(choices.profile),
        seeds=choices.seeds,
        only=choices.only,
        # As `--set` options, which also say what another sweep it is.
        settings=as_settings(choices.settings),
    )
    train(plan, Options(choices.max_concurrent, choices.address, choices.retries))
    failed = [cell for cell in plan.sweep.cells if folder_of(cell).state == "failed"]
    reasons = tuple(f"{cell.arm}, seed {cell.seed}: {folder_of(cell).reason()}" for cell in failed)
    return FinishedSweep(plan.sweep.axis, plan.profile, plan.runs, reasons)


def read_results(
    what: str | Path | FinishedSweep | Iterable[str | Path], *, axis: str | None = None
) -> pd.DataFrame:
    """Returns all evaluations as a pandas frame with one row each.

    Args:
        what: what `run_sweep` returned, a folder of runs, or one or several files of frozen records.
        axis: only the sweep of this name.

    Returns:
        a frame with the columns `axis`, `profile`, `arm`, `seed` (the cell); `step`, `epoch`;
        `train_flops`, `train_seconds`, `sample_seconds`, `evaluate_seconds` (costs so far);
        `fingerprint`, `protocol_digest`, `device`, `parameters`, `git_commit`, `git_dirty`, `autocast`,
        `plugins` (provenance), and then one column for each metric. Rows of unlike `protocol_digest`
        were not measured alike, and do not compare.

    Raises:
        UserError: there are no such files, or no records of this sweep.
    """
    import pandas as pd

    found = [results for results in _read(what) if axis in (None, results.axis)]
    frames = [results.frame for results in found if results.records]
    if not frames:
        which = f" of {axis}" if axis is not None else ""
        raise UserError(f"{what} holds no evaluations{which}: name a folder of runs, or frozen records")
    return pd.concat(frames, ignore_index=True)


def _read(what: str | Path | FinishedSweep | Iterable[str | Path]) -> list[Results]:
    from mirai_bench.results.frozen import read_jsonl
    from mirai_bench.results.reading import read_journals

    if isinstance(what, FinishedSweep):
        return read_journals(what.runs, what.axis, what.profile)
    if isinstance(what, (str, Path)) and Path(what).is_dir():
        return read_journals(Path(what))
    try:
        paths = [Path(what)] if isinstance(what, (str, Path)) else [Path(file) for file in what]
    except TypeError:
        form = "write what run_sweep returned, a folder of runs, or files of frozen records"
        raise UserError(f"read_results: what is {what!r}: {form}") from None
    return read_jsonl(paths)
