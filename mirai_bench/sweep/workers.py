"""A cell of several processes (machine.workers): Ray Train's TorchTrainer inside the Tune trial, which itself holds no CPU and no GPU.

The workers' shares are taken all at once or not at all (one placement group), on as many nodes as it needs: two trials can wait for each
other's end, never for each other's half. The folder of runs must be on storage that all these nodes share.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ray.train import RunConfig as TrainConfig
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from ..config import RunConfig
from ..failure import failure_left
from ..ranks import PATIENCE
from ..trainer import run_dir_of
from .trial import Job, ready, share_of_worker, train_here


def train_in_workers(config: RunConfig, job: Job) -> None:
    """Returns where the run ended by itself: done, asked to stop, or with what another attempt would meet again in its failed.json.

    A worker that ran out of memory has left there how many parts to go on in; that attempt is none of Tune's retries. Raises RuntimeError
    for the rest, such as a lost worker, which Tune tries again.
    """
    run_dir = run_dir_of(config)
    while True:
        stale = written(run_dir)
        try:
            return fit(config, job)
        except TrainingFailedError as error:
            left = failure_left(run_dir) if written(run_dir) != stale else {}
            if left.get("final"):
                return
            if "micro_batches" not in left:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise RuntimeError(f"a worker was lost: {lines[-1]} (log: {run_dir / 'log.txt'})") from None


def written(run_dir: Path) -> int:
    """When failed.json was, in nanoseconds."""
    file = run_dir / "failed.json"
    return file.stat().st_mtime_ns if file.is_file() else 0


def fit(config: RunConfig, job: Job) -> None:
    def work() -> None:
        if ready(config, job):
            train_here(config, job.stop_file)

    machine = config.machine
    scaling = ScalingConfig(
        num_workers=machine.workers,
        use_gpu=machine.gpus > 0,
        resources_per_worker=share_of_worker(machine),
        placement_strategy="PACK",
    )
    with tempfile.TemporaryDirectory() as scratch:  # of Ray Train's own state: checkpoints are ours
        TorchTrainer(
            work,
            scaling_config=scaling,
            torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
            run_config=TrainConfig(name="train", storage_path=scratch),
        ).fit()
