"""Sweeps and runs that are killed at random, again and again, end as if nothing had happened.

The victims are the driver, a process that trains a cell, one of its ranks, an idle worker, and the
node itself (Ray's raylet). After each death of the driver the same command is given again. In the
end the table is the same, the weights are the same bit for bit, and MLflow has every point once.
A single run is killed at moments that are spread over the whole of its life, imports and writes
included. Together there are 100 kills, in about half an hour.
$MIRAI_BENCH_ENDURANCE_SEED draws other moments and victims; default 0.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from mirai_bench.results.reading import read_journals, read_mlflow
from mirai_bench.sweep.plan import folder_of
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.small_sweeps import (
    ARMS,
    LONGER,
    SAVES,
    descendants,
    environment,
    finish,
    is_trial,
    plan_at,
    start,
    state,
    table_of,
)

pytestmark = pytest.mark.nightly

SEED = int(os.environ.get("MIRAI_BENCH_ENDURANCE_SEED", "0"))
PAUSE = (0.0, 10.0)  # seconds between the birth of a victim and its death
PATIENCE = 30.0  # seconds to wait for a victim
LONGEST = 3600.0  # seconds of one command
KILLED = -signal.SIGKILL
CELL_FAILED = 1


def processes(driver) -> dict[str, list[int]]:
    """Returns the processes that can be killed now, by what they are."""
    below = descendants(driver.pid)
    ranks = [pid for pid, name in below if "RayTrainWorker" in name]
    return {
        "the driver": [driver.pid],
        "a trial": [pid for pid, name in below if is_trial(name) and pid not in ranks],
        "a rank": ranks,
        "an idle worker": [pid for pid, name in below if name.startswith("ray::IDLE")],
        "the node": [pid for pid, name in below if "raylet/raylet" in name],
    }


def kill_one(driver, kind: str, pause: float, draw: random.Random) -> bool:
    """Waits for a process of this kind, and some seconds more, and kills it.

    Returns False if there is none by then.
    """
    deadline = time.monotonic() + PATIENCE
    while not processes(driver)[kind] and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(pause)
    pids = processes(driver)[kind] if driver.poll() is None else []
    if not pids:
        return False
    try:
        os.kill(draw.choice(pids), signal.SIGKILL)
    except ProcessLookupError:  # it has ended in the meantime
        return False
    return True


def endure(
    file: Path, kills: int, victims: dict[str, int], draw: random.Random, store: str
) -> tuple[Counter, int]:
    """Gives the command of a sweep until it ends well, and kills so many processes in the meantime.

    `victims` says how often each kind of process is drawn. Returns the number of kills by kind, and
    how often the command was given.
    """
    killed: Counter = Counter()
    for starts in range(1, kills + 2):
        driver = start(file, "--retries", "1000", MLFLOW_TRACKING_URI=store)
        while driver.poll() is None and killed.total() < kills:
            (kind,) = draw.choices(list(victims), list(victims.values()))
            killed[kind] += kill_one(driver, kind, draw.uniform(*PAUSE), draw)
        code, _, err = finish(driver, LONGEST)
        if code == 0:
            return killed, starts
        # Without its node a driver ends by itself and says so.
        assert code in (KILLED, CELL_FAILED), f"exit code {code}\n{err[-4000:]}"
    raise AssertionError(f"{starts} commands were not enough\n{err[-4000:]}")


def check(whole: Path, broken: Path, store: str, monkeypatch) -> None:
    """Checks that both sweeps have the same table and runs, and that MLflow agrees with the journals."""
    expected = {(cell.arm, cell.seed): folder_of(cell) for cell in plan_at(whole).sweep.cells}
    found = {(cell.arm, cell.seed): folder_of(cell) for cell in plan_at(broken).sweep.cells}
    assert found.keys() == expected.keys()
    for cell, folder in found.items():
        assert folder.state == "done"
        assert state(folder.path) == state(expected[cell].path), cell
        assert folder.path.parent != expected[cell].path.parent, "two folders are compared"
    runs = next(iter(found.values())).path.parent
    assert table_of(runs) == table_of(next(iter(expected.values())).path.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (from_mlflow,) = read_mlflow()
    (from_journals,) = read_journals(runs, "small")
    pd.testing.assert_frame_equal(from_mlflow.frame, from_journals.frame)


def starts_of(file: Path) -> int:
    """Returns how often the runs of a sweep were started or resumed, as their journals say."""
    folders = [folder_of(cell) for cell in plan_at(file).sweep.cells]
    return sum(line["kind"] == "start" for folder in folders for line in folder.journal.lines())


SWEEPS = {
    "cells of one process": {
        "kills": 50,
        "victims": {"the driver": 3, "a trial": 8, "an idle worker": 1, "the node": 1},
        "seeds": (0, 1, 2, 3),
        "arms": ARMS,
        **LONGER,
        **SAVES,
    },
    "cells of two processes": {
        "kills": 10,
        "victims": {"the driver": 1, "a trial": 2, "a rank": 4},
        "seeds": (0,),
        "arms": {name: ARMS[name] for name in ("baseline", "frozen")},
        "train": {"epochs": 4, "batch_size": 50},
        "evaluation": {"at": [2, 4]},
        "machine": SAVES["machine"] | {"workers": 2, "cpus": 2},
    },
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    name, sweep_file, tmp_path, monkeypatch, figures, stopwatch
):
    sections = dict(SWEEPS[name])
    kills = sections.pop("kills")
    victims = sections.pop("victims")
    # 1. The undisturbed sweep. Its file is read again at the end, so it gets a name of its own.
    whole = sweep_file(runs="whole", **sections).rename(tmp_path / "whole.yaml")
    code, _, err = finish(start(whole), LONGEST)
    assert code == 0, err
    undisturbed = stopwatch()
    # 2. The same sweep in other folders, killed again and again.
    broken = sweep_file(runs="broken", **sections)
    # What cells share is made again, so that a kill may hit that, too.
    (tmp_path / "broken" / "cache").unlink(missing_ok=True)
    store = f"sqlite:///{tmp_path / 'broken.db'}"
    killed, starts = endure(broken, kills, victims, random.Random(SEED), store)
    # 3. What must be the same.
    check(whole, broken, store, monkeypatch)
    cells = len(plan_at(broken).sweep.cells)
    disturbed = stopwatch() - undisturbed
    victims = ", ".join(f"{number} x {victim}" for victim, number in killed.most_common())
    figures(f"{cells} {name}: {undisturbed:.0f} s undisturbed, {disturbed:.0f} s with kills")
    figures(f"seed {SEED}, killed: {victims}")
    figures(f"the command was given {starts} times, runs were started {starts_of(broken)} times")
    assert killed.total() == kills, "the sweep has ended before all kills: give it more to do"


# ---- one run

RUN_KILLS = 40


def train_for(config, seconds: float | None) -> int:
    """Gives the command that trains a run, and kills it after so many seconds. Returns its exit code."""
    runs = config.machine.runs
    file = runs.parent / f"{runs.name}.json"
    file.write_text(config.model_dump_json())
    words = [sys.executable, "-m", "mirai_bench.train", file.name]
    with open(runs.parent / "train.log", "a") as log:
        process = subprocess.Popen(
            words, cwd=runs.parent, env=environment(runs.parent), stdout=log, stderr=log
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def test_a_run_that_is_killed_at_any_moment_of_its_life_ends_as_an_undisturbed_one(
    make_config, shared_runs, trained_run, tmp_path, figures
):
    draw = random.Random(SEED)
    kills = starts = 0
    for seed in range(RUN_KILLS):
        if kills == RUN_KILLS:
            break
        arm = list(ARMS.values())[seed % len(ARMS)]
        config = make_config(seed=seed, foresight=arm, model={"width": 16}, **LONGER, **SAVES)
        for name in ("whole", "broken"):
            (tmp_path / f"{name}{seed}").mkdir()
            (tmp_path / f"{name}{seed}" / "cache").symlink_to(shared_runs / "cache")
        whole = config.with_machine(runs=tmp_path / f"whole{seed}")
        began = time.monotonic()
        assert train_for(whole, None) == 0, (tmp_path / "train.log").read_text()[-4000:]
        life = time.monotonic() - began
        broken = config.with_machine(runs=tmp_path / f"broken{seed}")
        code = None
        while code != 0:
            code = train_for(broken, draw.uniform(0, 1.2 * life) if kills < RUN_KILLS else None)
            assert code in (0, KILLED), (tmp_path / "train.log").read_text()[-4000:]
            kills += code == KILLED
            starts += 1
        assert RunFolder(broken.run_path).state == "done"
        assert state(broken.run_path) == state(whole.run_path)
    assert kills == RUN_KILLS
    figures(f"seed {SEED}: {kills} kills of {seed} runs, the command was given {starts} times")
