"""`sweep FILE --diagnose`: diagnoses of the cells that have ended."""

from __future__ import annotations

import logging

from mirai_bench.diagnose.registry import DIAGNOSTICS
from mirai_bench.diagnose.run import Choice, diagnose_runs
from mirai_bench.sweep.plan import Plan, folder_of
from mirai_bench.utils.device import resolve_device

log = logging.getLogger(__name__)


def diagnose_finished(plan: Plan) -> None:
    """Makes what is missing of the diagnoses of a command's cells that have ended and have weights.

    They are made in this process, one cell after the other, on the device that the sweep names.
    """
    folders = [folder_of(cell) for cell in plan.sweep.cells]
    ready = [folder for folder in folders if folder.is_done and folder.has_weights]
    device = resolve_device(plan.sweep.cells[0].config.machine.device)
    report = diagnose_runs(ready, Choice(list(DIAGNOSTICS), [], False, device))
    left_out = len(folders) - len(ready)
    if left_out:
        log.info(f"{left_out} of {len(folders)} cells have not ended, or have no weights: not diagnosed")
    for line in report.lines():
        log.info(line)
