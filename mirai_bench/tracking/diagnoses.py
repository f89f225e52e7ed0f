"""What a run folder says of its diagnoses: lines of `diagnosis.jsonl`, which the room `diagnose` writes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from mirai_bench.tracking.journal import Journal
from mirai_bench.tracking.records import Count, problem
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError

KIND = "diagnosis"
# Fields of a diagnosis, in the order in which they are written, and of the run that it is about.
FOUND = ("step", "epoch", "diagnostic", "digest", "values", "detail", "seconds")
MADE_BY = ("fingerprint", "profile", "scope", "device", "precision", "git", "versions")

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class DiagnosisFields(BaseModel):
    """What a diagnosis says, as far as it is read."""

    step: Count
    epoch: Finite
    diagnostic: Annotated[str, Field(pattern=r"^\w+$")]
    digest: str
    values: dict[str, Finite]
    detail: dict[str, Any]


class SubjectFields(BaseModel):
    """What it says of the run that it is about, and of how much of it was looked at."""

    fingerprint: str
    scope: dict[str, Any]
    device: str


def diagnoses_of(folder: RunFolder) -> list[dict[str, Any]]:
    """Returns the diagnoses in the folder of a run, oldest first. Of two of one kind the later one counts.

    Raises UserError for a line of another form.
    """
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for line in Journal(folder.diagnosis_file).lines(KIND):
        wrong = problem(DiagnosisFields, line) or problem(SubjectFields, line)
        if wrong is not None:
            raise UserError(
                f"{folder.diagnosis_file} holds a diagnosis of another form ({wrong}): move the file away "
                "and diagnose the run again"
            )
        key = (line["diagnostic"], line["step"], line["digest"])
        found.pop(key, None)  # the order is that of the lines that count
        found[key] = line
    return list(found.values())
