"""What diagnostics found out about a run: lines of `diagnosis.jsonl` in its folder.

A line is {kind: diagnosis, time, step, epoch, diagnostic, digest, scope, values, detail, seconds,
fingerprint, profile, seed, device, precision, git, versions}. The run's own journal has its config.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.subject import Subject
from mirai_bench.tracking import provenance
from mirai_bench.tracking.diagnoses import KIND
from mirai_bench.tracking.journal import Journal
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils import plugins
from mirai_bench.utils.device import device_name


class Key(NamedTuple):
    """What a line is about. Of two lines of one key the later one counts."""

    diagnostic: str
    step: int
    digest: str


def journal_of(folder: RunFolder) -> Journal:
    """Returns the file of a run's diagnoses, which has the form of a journal."""
    return Journal(folder.diagnosis_file)


def measured(folder: RunFolder) -> set[Key]:
    """Returns what was measured already."""
    lines = journal_of(folder).lines(KIND)
    return {Key(line["diagnostic"], line["step"], line["digest"]) for line in lines}


def write(folder: RunFolder, key: Key, subject: Subject, finding: Finding, seconds: float) -> None:
    """Appends what a diagnostic found out about a snapshot of a run."""
    config = subject.config
    snapshot = subject.snapshot
    line: dict[str, Any] = {"kind": KIND, "time": time.time(), "step": snapshot.step}
    line |= {"epoch": snapshot.epoch, "diagnostic": key.diagnostic, "digest": key.digest}
    line |= {"scope": subject.scope.model_dump(mode="json")}
    line |= {"values": finding.values, "detail": finding.detail, "seconds": seconds}
    line |= {"fingerprint": config.fingerprint(), "profile": config.profile, "seed": config.seed}
    line |= {"device": device_name(subject.device), "precision": "fp32"}
    line |= {"git": provenance.git_state(), "versions": provenance.versions()}
    code = plugins.identity_of([("diagnostic", key.diagnostic)])
    journal_of(folder).append(line | ({"plugins": code} if code else {}), durable=True)
