"""Several processes of one run, started by torchrun on gloo.

What they agree on, and what follows when one of them runs out of memory.
"""

import subprocess
import sys

import pytest

from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.small_run import saved

BLIND = """
import os, sys
from pathlib import Path
import torch
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.distributed import check_shared, broadcast_from_rank0, process_group, rank_and_world

def refuse():
    raise UserError("no")

with process_group(torch.device("cpu")):
    rank, folder = rank_and_world()[0], Path(sys.argv[1])
    assert broadcast_from_rank0(lambda: rank + 7) == 7
    check_shared(folder / "same")
    for ask in (lambda: check_shared(folder / str(rank)), lambda: broadcast_from_rank0(refuse)):
        try:
            ask()
        except UserError as error:
            (folder / f"said.{rank}").open("a").write(f"{error}\\n")
"""


RUNS_OUT = """
import sys
import torch
from mirai_bench.train.__main__ import command
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils.cli import run

whole = Trainer.step

def runs_out(self, step):
    if self.rank == 1 and step == 4 and self.config.machine.micro_batches < 3:
        raise torch.OutOfMemoryError("no memory left")
    return whole(self, step)

Trainer.step = runs_out
sys.exit(run(command))
"""


def torchrun(tmp_path, script, *argv):
    (tmp_path / "script.py").write_text(script)
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *words, str(tmp_path / "script.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True)


def test_ranks_hear_rank_0_and_notice_a_folder_that_is_not_shared(tmp_path):
    done = torchrun(tmp_path, BLIND, tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        shared, refused = (tmp_path / f"said.{rank}").read_text().splitlines()
        assert (
            "is not the same folder on all nodes" in shared
            and "write machine.runs: a folder on storage" in shared
        )
        assert refused == "no"
    assert not list((tmp_path / "same").iterdir()), "nothing is left behind"


@pytest.mark.slow  # two processes start twice
def test_a_rank_that_runs_out_of_memory_ends_all_and_the_next_attempt_takes_smaller_parts(
    make_config, tmp_path
):
    """75 images a rank: the parts after 1 are 3, the first number from 2 that divides them."""
    config = make_config(
        train={"batch_size": 150}, machine={"runs": str(tmp_path / "runs"), "checkpoint_every": 0.3}
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    short = torchrun(tmp_path, RUNS_OUT, tmp_path / "config.json")
    assert short.returncode != 0 and RunFolder(config.run_path).failure().micro_batches == 3, short.stderr
    again = torchrun(tmp_path, RUNS_OUT, tmp_path / "config.json")
    assert again.returncode == 0, again.stderr
    lines = list(read_journal(config.run_path / "journal.jsonl"))
    starts = [
        (line["step"], line["config"]["machine"]["micro_batches"])
        for line in lines
        if line["kind"] == "start"
    ]
    assert starts == [(0, 1), (3, 3)] and lines[-1]["kind"] == "end"
    (record,) = [line for line in lines if line["kind"] == "evaluation"]
    assert record["config"]["machine"]["micro_batches"] == 3 and record["workers"] == 2
    assert (
        not (config.run_path / "failed.json").exists() and saved(config.run_path)[-1].name == "step_00000010"
    )
