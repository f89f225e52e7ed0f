"""A sweep as single commands, one for each missing cell: for xargs, a job array, or without Ray."""

from __future__ import annotations

import logging
import shlex

from mirai_bench.sweep.plan import Plan, folder_of, in_order_of_execution
from mirai_bench.utils.plugins import loaded

log = logging.getLogger(__name__)


def commands(plan: Plan) -> list[str]:
    """Returns a command for each cell that is neither done nor being trained, the baseline first.

    It writes the plan, for tables, and the configuration of each cell into its run folder, where the
    command reads it. The sweep finds done what these commands have trained.
    """
    plan.write()
    imports = "".join(f" --import {shlex.quote(plugin.word)}" for plugin in loaded())
    found = []
    for cell in in_order_of_execution(plan.sweep.cells, plan.sweep.baseline):
        folder = folder_of(cell)
        if folder.state in ("done", "running"):
            continue
        folder.write_config(cell.config.model_dump_json(indent=2))
        workers = cell.config.machine.workers
        python = f"torchrun --nproc-per-node {workers}" if workers > 1 else "python"
        found.append(f"{python} -m mirai_bench.train {shlex.quote(str(folder.config_file))}{imports}")
    log.info(
        f"{len(found)} of {len(plan.sweep.cells)} cells are missing. Run a command again to resume it; "
        "afterwards the sweep itself finds them done, and prints the table"
    )
    return found
