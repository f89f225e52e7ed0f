"""What diagnostics found out about the runs of a sweep, beside their evaluations.

They are read from run folders or from a frozen file, which holds: the plan of the sweep; the
evaluations of the diagnosed runs at the diagnosed steps, as frozen records have them; and for each
run {"kind": "subject", …what its diagnoses share} followed by {"kind": "diagnosis", …}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mirai_bench.results.frame import Results, file_stem
from mirai_bench.results.frozen import (
    frozen_file,
    frozen_lines,
    joined,
    refuse_loss,
    refuse_others,
    thawed,
    write_lines,
)
from mirai_bench.results.reading import read_journals
from mirai_bench.results.stats import Estimate, Values, paired
from mirai_bench.tracking.diagnoses import FOUND, KIND, MADE_BY, DiagnosisFields, SubjectFields, diagnoses_of
from mirai_bench.tracking.records import Count
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError

HEAD = "diagnoses"  # kind of the first line of a frozen file
SUBJECT = "subject"
# Significant digits of every number that is read. Figures need no more, files are a third as long,
# and a frozen file gives the same bytes as the run folders do.
DIGITS = 5


class FrozenSubject(SubjectFields):
    """The line of a frozen file before the diagnoses of a run."""

    arm: str
    seed: Count


@dataclass(frozen=True)
class Diagnosis:
    """What one diagnostic found out about one snapshot of one run."""

    arm: str
    seed: int
    fields: dict[str, Any]
    """The fields FOUND of tracking/diagnoses.py."""
    subject: dict[str, Any]
    """The fields MADE_BY, one object for all diagnoses of a run that share them."""

    @property
    def kind(self) -> tuple[str, str]:
        """Returns the diagnostic and the digest of what decides about its numbers."""
        return self.fields["diagnostic"], self.fields["digest"]

    @property
    def place(self) -> tuple[str, int, int]:
        """Returns arm, seed and step."""
        return self.arm, self.seed, self.fields["step"]


@dataclass
class Diagnoses:
    """The diagnoses of one sweep with one profile."""

    results: Results
    """The plan, and the evaluations."""
    found: list[Diagnosis]

    @property
    def name(self) -> str:
        """Returns the stem of the files of a report."""
        return f"diagnose_{self.results.name}"

    @cached_property
    def diagnostics(self) -> list[str]:
        """The names of the diagnostics, in the order in which they were first made."""
        return list(dict.fromkeys(each.fields["diagnostic"] for each in self.found))

    def of(self, diagnostic: str) -> list[Diagnosis]:
        """Returns the diagnoses of one diagnostic."""
        return [each for each in self.found if each.fields["diagnostic"] == diagnostic]

    def epochs(self, diagnostic: str) -> dict[int, float]:
        """Returns the steps at which a diagnostic was made, in their order, with their epochs."""
        return dict(sorted((each.fields["step"], each.fields["epoch"]) for each in self.of(diagnostic)))

    def last_step(self, diagnostic: str) -> int:
        """Returns the last step at which a diagnostic was made, or -1 if it was not."""
        return max(self.epochs(diagnostic), default=-1)

    def values(self, diagnostic: str) -> list[str]:
        """Returns the names of all values of a diagnostic."""
        return list(dict.fromkeys(name for each in self.of(diagnostic) for name in each.fields["values"]))

    def by_seed(self, diagnostic: str, arm: str, value: str, step: int | None = None) -> dict[int, float]:
        """Returns a value of an arm by seed, at a step or at the last one."""
        at = self.last_step(diagnostic) if step is None else step
        return {
            each.seed: each.fields["values"][value]
            for each in self.of(diagnostic)
            if (each.arm, each.fields["step"]) == (arm, at) and value in each.fields["values"]
        }

    def details(self, diagnostic: str, arm: str, step: int | None = None) -> dict[int, dict[str, Any]]:
        """Returns the detail of an arm by seed, at a step or at the last one."""
        at = self.last_step(diagnostic) if step is None else step
        own = [each for each in self.of(diagnostic) if (each.arm, each.fields["step"]) == (arm, at)]
        return {each.seed: each.fields["detail"] for each in own}

    def change(self, diagnostic: str, arm: str, value: str, step: int | None = None) -> Estimate | None:
        """Returns the difference of an arm to the baseline of the same seed."""
        theirs = self.by_seed(diagnostic, self.results.baseline, value, step)
        return paired(self.by_seed(diagnostic, arm, value, step), theirs)

    def metric(self, diagnostic: str, arm: str, metric: str) -> Values:
        """Returns a metric of an arm by seed, at the evaluation of the weights that were diagnosed last."""
        return self.results.by_seed(arm, self.last_step(diagnostic), metric)


# ---- run folders


def read_diagnosed(runs: Path, axis: str | None = None, profile: str | None = None) -> list[Diagnoses]:
    """Returns every sweep that was planned in this folder of runs and has a diagnosis.

    Raises UserError for diagnoses that do not belong together.
    """
    sweeps = []
    for results in read_journals(runs, axis, profile):
        found: list[Diagnosis] = []
        for cell in results.cells:
            lines = diagnoses_of(RunFolder(runs / cell["fingerprint"]))
            found += _found(lines, cell["arm"], cell["seed"])
        if found:
            sweeps.append(Diagnoses(results, of_one_kind(results.axis, found)))
    return sweeps


def _found(lines: Iterable[dict[str, Any]], arm: str, seed: int) -> Iterator[Diagnosis]:
    subject: dict[str, Any] = {}
    for line in lines:
        own = {key: line[key] for key in MADE_BY if key in line}
        subject = subject if own == subject else own
        fields = {key: rounded(line[key]) if key in ("values", "detail") else line[key] for key in FOUND}
        yield Diagnosis(arm, seed, fields, subject)


def rounded(value: Any) -> Any:
    """Returns a number, or a tree of lists and dicts, with every float rounded to DIGITS digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value


def of_one_kind(axis: str, found: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Returns, for each diagnostic, the diagnoses of one digest.

    It is the one that all snapshots have, and of several the newest: what was measured before with
    another scope or by an older version stays in the run folders. Raises UserError if there is none.
    """
    kept = set()
    for name in dict.fromkeys(each.fields["diagnostic"] for each in found):
        own = [each for each in found if each.fields["diagnostic"] == name]
        everywhere = {each.place for each in own}
        by_kind: dict[tuple[str, str], list[Diagnosis]] = {}
        for each in own:
            by_kind.setdefault(each.kind, []).append(each)
        whole = [kind for kind, few in by_kind.items() if {each.place for each in few} == everywhere]
        if not whole:
            raise UserError(f"{axis}: diagnoses of {name} {_difference(list(by_kind.values()))}")
        kept.add(whole[-1])
    return [each for each in found if each.kind in kept]


def _difference(kinds: list[list[Diagnosis]]) -> str:
    """Returns in words how two kinds of diagnoses of one diagnostic differ."""
    first, other = kinds[0][0], kinds[1][0]
    what = "are of two versions"
    one, two = first.subject["scope"], other.subject["scope"]
    for key in [*one, *two]:
        if one.get(key) != two.get(key):
            values = f"{one.get(key)!r} for {_place(first)} and {two.get(key)!r} for {_place(other)}"
            what = f"differ in their scope: {key} is {values}"
            break
    return f"{what}. They cannot stand in one figure: diagnose all runs alike"


def _place(found: Diagnosis) -> str:
    return f"{found.arm}, seed {found.seed}, step {found.fields['step']}"


# ---- frozen files


def freeze_diagnoses(diagnoses: Diagnoses, path: Path) -> None:
    """Writes the diagnoses and what they are joined with as JSON lines.

    Raises UserError if the file has diagnoses of cells that these lack, which would be lost.
    """
    if path.is_file():
        before = {(each.arm, each.seed) for each in read_frozen_diagnoses([path])[0].found}
        lost = before - {(each.arm, each.seed) for each in diagnoses.found}
        refuse_loss(path, lost, "diagnose their runs in this folder of runs, too")
    places = {each.place for each in diagnoses.found}
    records = [r for r in diagnoses.results.records if (r["arm"], r["seed"], r["step"]) in places]
    head, *lines = frozen_lines(replace(diagnoses.results, records=records), HEAD)
    lines.insert(0, head | {"digits": DIGITS})
    last = None
    for each in diagnoses.found:
        if each.subject is not last:
            last = each.subject
            lines.append({"kind": SUBJECT, "arm": each.arm, "seed": each.seed} | last)
        lines.append({"kind": KIND} | each.fields)
    write_lines(path, lines)


def frozen_file_name(results: Results) -> str:
    """Returns the name of the frozen file of a sweep's diagnoses."""
    return f"diagnose_{file_stem(f'{results.axis}_{results.profile}')}.jsonl"


def read_frozen_diagnoses(paths: Iterable[Path]) -> list[Diagnoses]:
    """Returns the diagnoses of frozen files. Files of one sweep are joined.

    Raises UserError for a file of another kind, and for diagnoses that do not belong together.
    """
    sweeps: dict[tuple[str, str], Diagnoses] = {}
    for path in paths:
        with frozen_file(path) as (head, lines):
            more = _thawed(head, lines)
        key = (more.results.axis, more.results.profile)
        if key in sweeps:
            first = sweeps[key]
            more = Diagnoses(joined(first.results, more.results, path), [*first.found, *more.found])
        sweeps[key] = more
    return [replace(each, found=of_one_kind(axis, each.found)) for (axis, _), each in sweeps.items()]


def _thawed(head: Any, lines: list[Any]) -> Diagnoses:
    if head["kind"] != HEAD:
        raise ValueError(f"its first line is of the kind {head['kind']!r}, and not {HEAD!r}")
    own = [line for line in lines if line["kind"] in (SUBJECT, KIND)]
    results = thawed(head, [line for line in lines if line["kind"] not in (SUBJECT, KIND)])
    found = []
    subject: dict[str, Any] = {}
    for line in own:
        if line["kind"] == SUBJECT:  # that of the diagnoses that follow
            refuse_others(FrozenSubject, line)
            arm, seed = line["arm"], line["seed"]
            subject = {key: line[key] for key in MADE_BY if key in line}
        else:
            refuse_others(DiagnosisFields, line)
            found.append(Diagnosis(arm, seed, {key: line[key] for key in FOUND if key in line}, subject))
    return Diagnoses(results, found)
