"""What a process of a trial does: it waits for the check, and trains one cell. It needs no Ray."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mirai_bench.config.run_config import RunConfig
from mirai_bench.sweep.job import Job
from mirai_bench.tracking.failure import Failure
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.log import configure_logging


def ready(config: RunConfig, job: Job) -> bool:
    """Imports what training needs, and then tells whether the cells passed the check.

    The imports come first, so that all processes make them at the same time, and not after the one
    that checks.
    """
    import mirai_bench.train.run  # noqa: F401
    from mirai_bench.data.images.datasets import open_dataset

    configure_logging()
    if config.data.dataset == "digits":
        open_dataset(config, "train")  # imports scikit-learn
    return job.accepted()


def train_cell(
    config: RunConfig,
    stop_file: Path,
    on_evaluation: Callable[[], None] = lambda: None,
) -> None:
    """Trains in this process, which may be one rank of a group. Returns early if asked to stop.

    If training fails, failed.json says why, the log has the traceback, and the error is raised: other
    ranks of the group wait for this one.
    """
    # Imported here, because they import torch: each process of a trial does so once.
    from mirai_bench.train import run
    from mirai_bench.train.trainer import resolve_hardware

    folder = RunFolder(config.run_path)
    # KeyboardInterrupt: a stop was requested, and a checkpoint saved.
    with folder.log(), contextlib.suppress(KeyboardInterrupt):
        try:
            hardware = resolve_hardware(config)
            # `wait`: another sweep may be training the same run, which both of them then share.
            options: dict[str, Any] = {"on_evaluation": on_evaluation, "stop": stop_file.exists}
            run.train(config, folder, hardware, wait=True, **options)
        except Exception as error:
            failure = Failure.of(error)
            folder.write_failure(failure)  # unless the run has already done so
            print(failure.traceback or failure.reason, file=sys.stderr)  # which is the log
            raise


@contextlib.contextmanager
def lasting_errors_stay_here(folder: RunFolder) -> Iterator[None]:
    """Returns a context that an error leaves only if another attempt may go better.

    failed.json holds the others.
    """
    try:
        yield
    except Exception:
        failure = folder.failure()
        if failure is None or not failure.final:
            raise
