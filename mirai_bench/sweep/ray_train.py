"""A cell of several processes (machine.workers): Ray Train's TorchTrainer inside the Tune trial.

The trial itself holds no CPU and no GPU. The workers' shares are taken all at once or not at all
(one placement group), on as many nodes as it needs: two trials can wait for each other's end, never
for each other's half. The folder of runs must be on storage that all these nodes share.
"""

from __future__ import annotations

import tempfile
import zlib

import ray
from ray.train import RunConfig as RayRunConfig
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from mirai_bench.config.run_config import RunConfig
from mirai_bench.sweep.cell import ready, train_cell
from mirai_bench.sweep.job import Job, last_line, share_of_worker
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.distributed import COLLECTIVE_TIMEOUT
from mirai_bench.utils.plugins import load


def train_in_workers(config: RunConfig, job: Job) -> None:
    """Trains the cell in its workers. Returns if it is done, stopped, or failed for good.

    A permanent error is in failed.json. After an out-of-memory error failed.json holds the number
    of micro-batches to use; that retry does not count against Ray Tune's limit. Raises RuntimeError
    for any other failure, such as a lost worker, so that Tune retries the trial.
    """
    folder = RunFolder(config.run_path)
    share = tagged_share(config)
    free_leftovers(share)
    while True:
        written_before = folder.failure_written_at()
        try:
            return fit(config, job, share)
        except TrainingFailedError as error:
            # A failed.json that was there before tells nothing about this attempt.
            is_new = folder.failure_written_at() != written_before
            failure = folder.failure() if is_new else None
            if failure is not None and failure.final:
                return
            if failure is None or failure.micro_batches is None:
                raise RuntimeError(
                    f"a worker was lost: {last_line(error)} (log: {folder.log_file})"
                ) from None


def tagged_share(config: RunConfig) -> dict[str, float]:
    """Returns the resources that each worker takes, tagged with their cell and driver.

    Ray Train offers no name for its placement group. The tag is a small, unique number of bytes of
    memory, by which `free_leftovers` recognises the group of an earlier attempt.
    """
    # The job id is that of the driver: a retry keeps it, another sweep on the cluster has its own.
    owner = f"{ray.get_runtime_context().get_job_id()} {config.fingerprint()}"
    tag = 1 + zlib.crc32(owner.encode()) % 2**20  # at most 1 MiB: it never decides what fits
    return share_of_worker(config.machine) | {"memory": float(tag)}


def free_leftovers(share: dict[str, float]) -> None:
    """Removes the placement group of an earlier attempt at this cell.

    If the trial process was killed, Ray stops its workers but keeps their placement group until the
    driver exits, and the retry would wait for those resources forever. Ray Train's own cleanup
    needs the dashboard, which a local Ray does not start.
    """
    for number, group in placement_group_table().items():
        is_ours = all(bundle == share for bundle in group["bundles"].values())
        if is_ours and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))


def fit(config: RunConfig, job: Job, share: dict[str, float]) -> None:
    """Runs the workers once. Raises TrainingFailedError if one of them fails."""

    def work() -> None:
        load(job.plugins)
        if ready(config, job):
            train_cell(config, job.stop_file)

    scaling = ScalingConfig(
        num_workers=config.machine.workers,
        use_gpu=config.machine.gpus > 0,
        resources_per_worker=share,
        placement_strategy="PACK",  # on as few nodes as possible
    )
    # Ray Train's own state goes to a temporary folder: checkpoints are ours.
    with tempfile.TemporaryDirectory() as scratch:
        TorchTrainer(
            work,
            scaling_config=scaling,
            torch_config=TorchConfig(timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())),
            run_config=RayRunConfig(name="train", storage_path=scratch),
        ).fit()
