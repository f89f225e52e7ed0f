"""TODO: sweep.cell."""

from __future__ import annotations

from pathlib import Path

from mirai_bench.config.run_config import RunConfig
from mirai_bench.sweep.job import Job
from mirai_bench.tracking.run_folder import log_of
from mirai_bench.utils.errors import UserError


def ready(config: RunConfig, job: Job) -> bool:
    """Imports what training needs, then says whether the cells are in order."""
    from mirai_bench.data.images.datasets import open_dataset
    from mirai_bench.evaluate import evaluation as evaluate  # noqa: F401  before one process makes the check, for which the others wait
    from mirai_bench.train import run as train  # noqa: F401  before one process makes the check, for which the others wait

    if config.data.dataset == "digits":
        open_dataset(config, "train")  # imports scikit-learn
    return job.accepted()


def train_here(config: RunConfig, stop_file: Path) -> None:
    """In this process, one of a group where there is one. Raises RunFailed or UserError, with the failed.json, for what cannot be got past."""
    from mirai_bench.tracking.run_folder import leave_failure
    from mirai_bench.train import run as training
    from mirai_bench.train.trainer import run_dir_of

    run_dir = run_dir_of(config)
    with log_of(run_dir):
        try:
            training.train(config, run_dir, wait=True, stop=stop_file.exists)
        except KeyboardInterrupt:
            pass  # asked to stop: its checkpoint is there
        except (training.RunFailed, UserError) as error:
            if not (run_dir / "failed.json").is_file():
                leave_failure(run_dir, error)
            raise
