"""Small runs: the sections that shrink the shipped digits profile, and what tests do with the
folder of a run."""

from pathlib import Path

from mirai_bench.checkpoint import store
from mirai_bench.config.run_config import RunConfig
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train import run
from mirai_bench.train.trainer import Trainer, resolve_hardware

SMALL = {
    "model": {"size": "nano", "depth": 3, "width": 32, "heads": 2},
    "foresight": {"projector": {"hidden": 32}, "encoder": {"epochs": 1, "depth": 2}},
    "train": {"epochs": 1, "batch_size": 16},
    "evaluation": {"at": [1], "protocol": {"base": "digits", "num_samples": 100}},
}


def new_trainer(config: RunConfig, **options) -> Trainer:
    """Returns a trainer on the hardware that the config names."""
    return Trainer(config, resolve_hardware(config), **options)


def train(config: RunConfig, path: Path, **options) -> None:
    """Trains the run in the folder `path`, on the hardware that the config names."""
    run.train(config, RunFolder(path), resolve_hardware(config), **options)


def saved(path: Path) -> list[Path]:
    """Returns the checkpoints of the run in the folder `path`, oldest first."""
    return store.saved(RunFolder(path))
