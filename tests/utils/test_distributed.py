"""What the environment announces of other processes."""

import pytest
import torch

from mirai_bench.utils.distributed import announced, process_group
from mirai_bench.utils.errors import UserError

NAMES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    def set_to(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize("values", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"RANK": "3"}])
def test_one_process_is_on_its_own(environment, values):
    environment(**values)
    assert announced("MASTER_ADDR") == (0, 1)
    with process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


def test_several_processes_are_told_apart(environment):
    environment(WORLD_SIZE="2", RANK="1")
    assert announced() == (1, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is '2'"),
        ({"WORLD_SIZE": "-1", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is '0'"),
    ],
)
def test_what_processes_lack_to_meet_is_named(environment, values, message):
    environment(**values)
    with (
        pytest.raises(UserError, match=f"{message}: start the processes with torchrun"),
        process_group(torch.device("cpu")),
    ):
        pass
