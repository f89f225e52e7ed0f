"""What one trial does: it trains one cell. No ray in here; torch is imported once a process, inside the functions."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from mirai_bench.config.run_config import RunConfig
from mirai_bench.sweep.cell import ready, train_here
from mirai_bench.sweep.job import Job
from mirai_bench.tracking.run_folder import began_after, measured_seconds
from mirai_bench.utils.errors import UserError


def run_cell(trial: dict[str, Any], *, job: Job) -> dict[str, Any]:
    """Trains cell number trial["cell"] from its newest checkpoint. What a run cannot get past ends as its failed.json, not as an exception:
    only what another attempt may mend (a lost worker, a broken device) raises, and is tried again.

    → seconds: of the whole call, of imports and the check, and of what the journal measured (steps, sampling, evaluation)
    """
    start = time.time()
    from mirai_bench.train.trainer import run_dir_of

    config = RunConfig.model_validate(job.configs[trial["cell"]])
    run_dir = run_dir_of(config)
    before = measured_seconds(run_dir)
    if config.machine.workers > 1:
        from mirai_bench.sweep.ray_train import train_in_workers

        train_in_workers(config, job)
        began = began_after(start, run_dir)
    else:
        accepted, began = ready(config, job), time.time()
        if accepted:
            from mirai_bench.tracking.run_folder import RunFailed

            with contextlib.suppress(RunFailed, UserError):
                train_here(config, job.stop_file)
    seconds, measured = time.time() - start, measured_seconds(run_dir) - before
    return {"seconds": seconds, "ready_seconds": began - start, "measured_seconds": measured}
