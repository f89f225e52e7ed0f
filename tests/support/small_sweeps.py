"""Small sweeps as a user starts them: files, commands, processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from safetensors.torch import load_file

from mirai_bench.config.load import merge, read_profile
from mirai_bench.results.reading import read_journals
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import markdown
from mirai_bench.sweep.plan import make_plan
from mirai_bench.tracking.journal import read_journal
from tests.support.paths import ROOT
from tests.support.small_run import SMALL, saved

ARMS = {
    "baseline": {"level": "none"},
    "internal": {"level": "internal", "source": "ema", "k": 2},
    "frozen": {"level": "internal", "source": "frozen", "k": 1},
    "output": {"level": "output", "k": 2},
}

LONGER = {"train": {"epochs": 6, "batch_size": 16}, "evaluation": {"at": [3, 6]}}
SAVES = {"machine": {"device": "cpu", "log_every": 10, "checkpoint_every": 0.25}}


def sweep_writer(tmp_path, shared_runs):
    """Writes a sweep file over the shrunk digits profile; what is made once (classifier, reference)
    is shared with the other tests."""

    def write(arms, seeds=(0,), runs="runs", **sections):
        profile = merge(merge(read_profile("digits"), SMALL), {"machine": {"device": "cpu", "log_every": 5}})
        profile = merge(profile, {"model": {"width": 16}, **sections})
        profile.pop("profile")
        (tmp_path / "profiles").mkdir(exist_ok=True)
        (tmp_path / "profiles" / "small.yaml").write_text(yaml.safe_dump(profile))
        content = {
            "axis": "small",
            "question": "Does it run?",
            "profile": "small",
            "seeds": list(seeds),
            "arms": arms,
        }
        content["machine"] = {"runs": runs}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        (tmp_path / runs).mkdir(exist_ok=True)
        if not (tmp_path / runs / "cache").exists() and (shared_runs / "cache").exists():
            (tmp_path / runs / "cache").symlink_to(shared_runs / "cache")
        return tmp_path / "small.yaml"

    return write


def environment(folder, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_"))}
    return kept | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "PYTHONPATH": str(ROOT)} | more


def start(file, *argv, **variables):
    """The command, in the file's folder, in a process group of its own."""
    words = [*argv, file.name] if argv == ("search",) else [file.name, *argv]
    command = [sys.executable, "-m", "mirai_bench.sweep", *words]
    return subprocess.Popen(
        command,
        cwd=file.parent,
        env=environment(file.parent, **variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def said(text):
    """What a command logged, line by line, without the time and the rank that stand before it where
    nobody watches."""
    return [
        re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (\[rank \d+\] )?", "", line) for line in text.splitlines()
    ]


def finish(process, timeout=400):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def plan_at(file, **choices):
    before = os.getcwd()
    os.chdir(file.parent)
    try:
        return make_plan(file, **choices)
    finally:
        os.chdir(before)


def table_of(runs):
    (results,) = read_journals(runs, "small")
    return markdown(build_table(results, timing=False))


def descendants(pid):
    """(pid, command line) of all processes below `pid`."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                names[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except (OSError, IndexError):
                continue
    found, level = [], {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += [(child, names[child]) for child in level]
    return found


def is_trial(name):
    return name.startswith("ray::") and "train" in name


def kill_a_worker(driver, draw):
    """kill -9 of a process that trains a cell; False where none does."""
    workers = [pid for pid, name in descendants(driver.pid) if is_trial(name)]
    if workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    return bool(workers)


def state(run_dir):
    """What must be the same: final weights, moments, EMA; losses; metrics."""
    tensors = {
        name: load_file(saved(run_dir)[-1] / f"{name}.safetensors") for name in ("model", "ema", "optimizer")
    }
    flat = {
        (file, key): tensor.numpy().tobytes()
        for file, group in tensors.items()
        for key, tensor in group.items()
    }
    lines = list(read_journal(run_dir / "journal.jsonl"))
    losses = [
        (line["step"], line["loss"], line["ntp"], line["grad_norm"])
        for line in lines
        if line["kind"] == "train"
    ]
    metrics = [(line["step"], line["metrics"]) for line in lines if line["kind"] == "evaluation"]
    grids = {path.name: path.read_bytes() for path in (run_dir / "samples").iterdir()}
    return flat, losses, metrics, grids
