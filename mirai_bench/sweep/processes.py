"""A run of several processes (machine.workers) on one machine: torchrun below the trial that holds their GPUs."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..journal import write_atomic

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In the child, before it starts: where the trial's process is killed, torchrun is asked to end too, and with it its workers."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def train_in_processes(config: RunConfig, run_dir: Path, stop_file: Path) -> None:
    """`torchrun -m mirai_bench.train` with what it says in the run's log.txt. Raises RuntimeError where it ends without an answer."""
    launch = run_dir / "launch.json"
    write_atomic(launch, config.model_dump_json())
    workers = config.machine.workers
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m", "mirai_bench.train", str(launch)]
    with open(run_dir / "log.txt", "ab") as log:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, preexec_fn=die_with_parent)
        asked = False
        while process.poll() is None:
            if stop_file.exists() and not asked:
                process.terminate()  # torchrun passes it on: every rank saves and leaves
                asked = True
            time.sleep(0.5)
    if not asked and not (run_dir / "done.json").is_file() and _step_of_failure(run_dir) is None:
        raise RuntimeError(f"torchrun ended with {process.returncode}: see {run_dir / 'log.txt'}")


def _step_of_failure(run_dir: Path) -> Any:
    """The step at which the run itself gave up; None where it was something else, which another attempt may mend."""
    failed = run_dir / "failed.json"
    return json.loads(failed.read_bytes()).get("step") if failed.is_file() else None
