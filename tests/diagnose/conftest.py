from collections.abc import Callable

import pytest
import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import open_codes
from mirai_bench.diagnose.scope import Scope
from mirai_bench.diagnose.snapshots import places
from mirai_bench.diagnose.subject import Subject
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.small_run import train

CPU = torch.device("cpu")
SMALL_SCOPE = Scope(heldout_images=40, fit_images=60, reach=1)


def subject_of(config: RunConfig, scope: Scope = SMALL_SCOPE) -> Subject:
    """The newest snapshot of a finished run."""
    codes = open_codes(config, "train", CPU)
    place = places(RunFolder(config.run_path), config, codes.steps_per_epoch(config.train.batch_size))[-1]
    return Subject(config, place.load(), scope, CPU, codes)


@pytest.fixture(scope="session")
def mirai_e(make_config: Callable[..., RunConfig]) -> RunConfig:
    """A finished run of Mirai-E on the grid, K = 3, whose weights of epoch 1 were kept."""
    config = make_config(
        foresight={"level": "internal", "source": "ema", "layout": "grid_2d", "k": 3, "layer": 1},
        train={"epochs": 2},
        evaluation={"at": [2]},
        machine={"keep_at": [1], "keep_checkpoints": 1},
    )
    train(config, config.run_path)
    return config


@pytest.fixture
def subject(mirai_e: RunConfig) -> Subject:
    return subject_of(mirai_e)
