"""Small runs: the sections that shrink the shipped digits profile, and what tests do with the
folder of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def resumed(config: RunConfig) -> tuple[Trainer, Trainer, dict[str, Any]]:
    """Returns a trainer after four steps, another one that took two of them and went on from a checkpoint,
    and the values of the latter's last step."""
    whole, first = new_trainer(config), new_trainer(config)
    for step in range(4):
        whole.step(step)
    for step in range(2):
        first.step(step)
    second = new_trainer(config)
    second.restore(first.checkpoint({}))
    for step in range(2, 4):
        values = second.step(step)
    return whole, second, values


def train(config: RunConfig, path: Path, **options) -> None:
    """Trains the run in the folder `path`, on the hardware that the config names."""
    run.train(config, RunFolder(path), resolve_hardware(config), **options)


def saved(path: Path) -> list[Path]:
    """Returns the checkpoints of the run in the folder `path`, oldest first."""
    return store.saved(RunFolder(path))


def finished_pair(make_config: Callable[..., RunConfig], folder: Path, shared_runs: Path) -> Path:
    """Trains two arms with two seeds as the sweep `small`, whose baseline is `baseline`.

    Returns its folder of runs, in `folder`. The classifier is that of the session.
    """
    runs = folder / "runs"
    runs.mkdir()
    (shared_runs / "cache").mkdir(exist_ok=True)
    (runs / "cache").symlink_to(shared_runs / "cache")
    cells = []
    for seed in (0, 1):
        for arm, foresight in (("baseline", {"level": "none"}), ("output", {"level": "output", "k": 2})):
            evaluation = {"at": [1], "protocol": {"base": "digits", "num_samples": 20}}
            config = make_config(
                seed=seed, foresight=foresight, evaluation=evaluation, machine={"runs": str(runs)}
            )
            train(config, config.run_path)
            cells.append({"arm": arm, "seed": seed, "fingerprint": config.fingerprint()})
    plan = {"axis": "small", "profile": "digits", "question": "?", "baseline": "baseline"}
    plan |= {"arms": ["baseline", "output"], "cells": cells}
    (runs / "sweeps").mkdir()
    (runs / "sweeps" / "small-digits.json").write_text(json.dumps(plan))
    return runs
