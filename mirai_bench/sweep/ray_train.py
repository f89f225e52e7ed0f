"""A cell of several processes (machine.workers): Ray Train's TorchTrainer inside the Tune trial, which itself holds no CPU and no GPU.

The workers' shares are taken all at once or not at all (one placement group), on as many nodes as it needs: two trials can wait for each
other's end, never for each other's half. The folder of runs must be on storage that all these nodes share.
"""

from __future__ import annotations

import tempfile
import zlib

import ray
from ray.train import RunConfig as TrainConfig
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from mirai_bench.config.run_config import RunConfig
from mirai_bench.sweep.cell import ready, train_here
from mirai_bench.sweep.job import Job, share_of_worker
from mirai_bench.tracking.run_folder import failure_left, written
from mirai_bench.train.trainer import run_dir_of
from mirai_bench.utils.distributed import PATIENCE


def train_in_workers(config: RunConfig, job: Job) -> None:
    """Returns where the run ended by itself: done, asked to stop, or with what another attempt would meet again in its failed.json.

    A worker that ran out of memory has left there how many parts to go on in; that attempt is none of Tune's retries. Raises RuntimeError
    for the rest, such as a lost worker, which Tune tries again.
    """
    run_dir, share = run_dir_of(config), tagged_share(config)
    free_leftovers(share)
    while True:
        stale = written(run_dir)
        try:
            return fit(config, job, share)
        except TrainingFailedError as error:
            left = failure_left(run_dir) if written(run_dir) != stale else {}
            if left.get("final"):
                return
            if "micro_batches" not in left:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise RuntimeError(f"a worker was lost: {lines[-1]} (log: {run_dir / 'log.txt'})") from None


def tagged_share(config: RunConfig) -> dict[str, float]:
    """What each worker takes, and a few bytes of memory whose number says whose they are: the cell's, of this driver."""
    owner = f"{ray.get_runtime_context().get_job_id()} {config.fingerprint()}"
    return share_of_worker(config.machine) | {"memory": float(1 + zlib.crc32(owner.encode()) % 2**20)}


def free_leftovers(share: dict[str, float]) -> None:
    """Where the trial's own process was killed, Ray ends its workers but keeps their placement group until the driver ends (what Ray Train
    has against it asks the dashboard, which a local Ray does not run): the next attempt would wait for ever for what it holds."""
    for number, group in placement_group_table().items():
        if group["state"] != "REMOVED" and all(bundle == share for bundle in group["bundles"].values()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))


def fit(config: RunConfig, job: Job, share: dict[str, float]) -> None:
    def work() -> None:
        if ready(config, job):
            train_here(config, job.stop_file)

    machine = config.machine
    scaling = ScalingConfig(
        num_workers=machine.workers,
        use_gpu=machine.gpus > 0,
        resources_per_worker=share,
        placement_strategy="PACK",
    )
    with tempfile.TemporaryDirectory() as scratch:  # of Ray Train's own state: checkpoints are ours
        TorchTrainer(
            work,
            scaling_config=scaling,
            torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
            run_config=TrainConfig(name="train", storage_path=scratch),
        ).fit()
