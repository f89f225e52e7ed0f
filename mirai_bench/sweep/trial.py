"""What one trial of Ray Tune does: it trains one cell.

Torch is imported inside functions only: the driver imports this module, too, and needs no torch.
"""

from __future__ import annotations

import time
from typing import Any

from mirai_bench.config.run_config import RunConfig
from mirai_bench.sweep.cell import lasting_errors_stay_here, ready, train_cell
from mirai_bench.sweep.job import Job
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.plugins import load


def run_cell(trial: dict[str, Any], *, job: Job) -> dict[str, float]:
    """Trains cell number trial["cell"] from its newest checkpoint.

    Lasting errors are written to failed.json and do not raise. Others (a lost worker, a broken device)
    raise, so that Ray Tune tries again.

    Returns the seconds of the whole call (`seconds`), of imports and the check (`ready_seconds`),
    and of what the journal measured: steps, sampling, evaluation (`measured_seconds`).
    """
    # 1. What earlier attempts have measured does not count for this call.
    start = time.time()
    load(job.plugins)
    config = RunConfig.model_validate(job.configs[trial["cell"]])
    folder = RunFolder(config.run_path)
    measured_before = sum(folder.journal.measured_seconds().values())
    # 2. Training, in the workers of the trial or in its own process.
    if config.machine.workers > 1:
        from mirai_bench.sweep.ray_train import train_in_workers

        train_in_workers(config, job)
        began = folder.journal.started_after(start) or start
    else:
        accepted = ready(config, job)
        began = time.time()
        if accepted:
            with lasting_errors_stay_here(folder):
                train_cell(config, job.stop_file)
    # 3. Where the time went.
    return {
        "seconds": time.time() - start,
        "ready_seconds": began - start,
        "measured_seconds": sum(folder.journal.measured_seconds().values()) - measured_before,
    }
