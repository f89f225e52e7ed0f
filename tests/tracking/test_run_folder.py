"""The folder of a run: its progress, and what a failed attempt leaves in it."""

import json
import time

import pytest

from mirai_bench.config.load import SWEEPS
from mirai_bench.sweep import driver
from mirai_bench.sweep.plan import make_plan
from mirai_bench.tracking.run_folder import (
    RunFailed,
    failure_left,
    failure_of,
    leave_failure,
    progress_of,
    take_failure,
)

FILE = SWEEPS / "injection_level.yaml"


def test_progress_of_a_resumed_run(here, tmp_path):
    now = time.time()
    lines = [("start", 0, now - 900), ("train", 2, now - 800), ("start", 2, now - 40), ("train", 4, now)]
    text = "".join(
        json.dumps({"kind": kind, "epoch": epoch, "step": 10 * epoch, "time": at}) + "\n"
        for kind, epoch, at in lines
    )
    (tmp_path / "journal.jsonl").write_text(text + '{"kind": "tr')
    config = make_plan(FILE, settings=["train.epochs=10", "evaluation.at=[10]"]).sweep.cells[0].config
    progress = progress_of(tmp_path, config)
    assert progress.epoch == 4 and progress.seconds_left == pytest.approx(120, abs=5), (
        "20 s an epoch since it was resumed"
    )


def test_what_an_attempt_leaves_is_read_once(tmp_path):
    leave_failure(tmp_path / "run", MemoryError("too little"), micro_batches=4)
    assert take_failure(tmp_path / "run") == {
        "reason": "MemoryError: too little",
        "step": None,
        "final": False,
        "micro_batches": 4,
    }
    assert take_failure(tmp_path / "run") == {} == failure_left(tmp_path / "nowhere")
    leave_failure(tmp_path / "run", RunFailed("not finite", 7))
    assert json.loads((tmp_path / "run" / "failed.json").read_text()) == {
        "reason": "not finite",
        "step": 7,
        "final": True,
    }


def test_a_cell_that_ray_gave_up_says_so(tmp_path):
    driver.leave_failure(
        tmp_path / "run", RuntimeError("Traceback …\n\nThe actor died unexpectedly\n"), retries=2
    )
    assert failure_of(tmp_path / "run") == "given up after 3 attempts: The actor died unexpectedly"
