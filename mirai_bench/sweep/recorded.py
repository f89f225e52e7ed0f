"""Cells that are known from frozen records: `python -m mirai_bench.sweep FILE --records FILE…`.

A study may go on on another machine, or where its folder of runs is gone. A cell whose end is in a
frozen file gets a run folder with these evaluations, and is done. It has no weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mirai_bench.config.sweep_file import Cell
from mirai_bench.results.frame import Results
from mirai_bench.sweep.plan import Plan, folder_of


def recorded_cells(plan: Plan, known: Sequence[Results]) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of each cell of the plan that has ended in the known results.

    They are found by the fingerprint, which says that it is the same run.
    """
    wanted = {cell.fingerprint for cell in plan.sweep.cells}
    found: dict[str, list[dict[str, Any]]] = {}
    for results in known:
        ended = {cell["fingerprint"] for cell in results.cells if cell["status"] == "done"}
        for record in results.records:
            fingerprint = record["run"]["fingerprint"]
            if fingerprint in wanted & ended:
                found.setdefault(fingerprint, []).append(record)
    return found


def with_registered(plan: Plan, known: Sequence[Results]) -> Plan:
    """Returns the plan with what the records say was registered before the sweep's first run."""
    for results in known:
        same = (results.axis, results.profile) == (plan.sweep.axis, plan.profile)
        if same and results.registered and plan.first_registered is None:
            return replace(plan, first_registered=results.registered["first"])
    return plan


def restore(plan: Plan, known: Sequence[Results]) -> int:
    """Makes a run folder of each recorded cell that has none. Returns how many there are."""
    records = recorded_cells(plan, known)
    restored = 0
    for cell in plan.sweep.cells:
        folder = folder_of(cell)
        if cell.fingerprint in records and not folder.holds_run:
            _write(cell, records[cell.fingerprint])
            restored += 1
    return restored


def _write(cell: Cell, records: list[dict[str, Any]]) -> None:
    folder = folder_of(cell)
    folder.write_config(cell.config.model_dump_json(indent=2))
    for record in records:
        # A record has what its run's evaluations share in `run`, and a line of a journal has it all.
        measured = {key: value for key, value in record.items() if key not in ("run", "arm", "seed")}
        line = {"kind": "evaluation", "time": time.time(), "seed": cell.seed}
        folder.journal.append(line | measured | record["run"])
    last = records[-1]
    end = {"kind": "end", "time": time.time(), "step": last["step"], "epoch": last["epoch"]}
    folder.journal.append(end | {"train_seconds": last["train_seconds"]}, durable=True)
    folder.mark_done(last["step"], last["train_seconds"])
