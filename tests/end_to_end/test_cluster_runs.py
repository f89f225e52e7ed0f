"""What of sweeps/cluster a machine without a cluster can run, run: the SLURM script, and the
RayJob's command on Ray's job server."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml

from mirai_bench.config.load import SWEEPS
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.servers import free_port
from tests.support.small_sweeps import ARMS, descendants, environment, plan_at, sweep_writer

CLUSTER = SWEEPS / "cluster"


@cache
def alone():
    """Words before a command that let it see no process but its own.

    `ray symmetric-run` refuses beside another Ray, and ends every one.
    """
    for words in (
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"],
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"],
    ):
        if shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
            return words
    if "CI" in os.environ:
        return []
    pytest.skip("ray stop would end every Ray on this machine: needs unshare")


class Slurm:
    """A folder as a user submits from, an allocation of one node, and stand-ins for srun (runs it
    here) and scontrol (notes it)."""

    def __init__(self, file):
        self.folder, self.file = file.parent, file
        bin = self.folder / "bin"
        bin.mkdir()
        self.script(bin / "srun", '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
        self.script(bin / "scontrol", f'#!/bin/sh\necho "$@" >> {self.folder / "scontrol.log"}\n')
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        (self.folder / ".venv" / "bin" / "activate").write_text(
            f"PATH={bin}:{Path(sys.executable).parent}:$PATH\n"
        )
        self.job = str(free_port())

    def script(self, path, text):
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def submit(self):
        given = {
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": self.job,
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_PER_TASK": "2",
        }
        return subprocess.Popen(
            [*alone(), "bash", CLUSTER / "slurm.sbatch", self.file.name],
            env=environment(self.folder, HEAD_IP="127.0.0.1", **given),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def bash_of(process):
    """The batch script's own process; outside its namespace it has another number."""
    return next(
        pid
        for pid, name in [(process.pid, ""), *descendants(process.pid)]
        if name.startswith("bash ") or not alone()
    )


@pytest.mark.slow  # a start of Ray, by its own commands
def test_the_slurm_script_runs_a_sweep_to_its_end(tmp_path, shared_runs, trained_run):
    file = sweep_writer(tmp_path, shared_runs)({"baseline": ARMS["baseline"]})
    slurm = Slurm(file)
    job = slurm.submit()
    out, _ = job.communicate(timeout=300)
    assert job.returncode == 0, out
    assert "| baseline | 1 |" in out and out.rstrip().endswith("1 done") and "Traceback" not in out
    assert not (tmp_path / "scontrol.log").exists() and not Path(f"/tmp/mirai-bench-{slurm.job}").exists()


@pytest.mark.slow  # a start of Ray, by its own commands
def test_before_its_time_limit_a_slurm_job_saves_and_queues_itself_again(tmp_path, shared_runs, trained_run):
    file = sweep_writer(tmp_path, shared_runs)(
        {"baseline": ARMS["baseline"]}, train={"epochs": 400}, evaluation={"at": [400]}
    )
    slurm = Slurm(file)
    job = slurm.submit()
    deadline = time.monotonic() + 200
    while not any(
        '"kind": "train"' in path.read_text() for path in (tmp_path / "runs").glob("*/journal.jsonl")
    ):
        time.sleep(0.5)
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0]
    os.kill(bash_of(job), signal.SIGUSR1)
    out, _ = job.communicate(timeout=200)
    assert job.returncode == 0 and "running cells save a checkpoint" in out, out
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {slurm.job}\n"
    (cell,) = plan_at(file).sweep.cells
    assert RunFolder(cell.run_path).state == "pending" and list(cell.run_path.glob("checkpoints/*"))


HEAD = """
set -e
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=a-token-of-thirty-two-characters RAY_TMPDIR={tmp}
ray start --head --port={gcs} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} \
    --num-cpus=2 --disable-usage-stats \
    --include-dashboard=true --node-ip-address=127.0.0.1 >head.log 2>&1
ray job submit --address http://127.0.0.1:{dashboard} -- {entrypoint}
"""


@pytest.mark.slow  # a start of Ray and of its job server
def test_the_rayjobs_command_runs_when_it_is_submitted(tmp_path, shared_runs, trained_run):
    """As KubeRay's submitter does it, to a head with a token: what differs is the sweep, and that
    head and worker are one."""
    file = sweep_writer(tmp_path, shared_runs)({"baseline": ARMS["baseline"]})
    words = shlex.split(yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]["entrypoint"])
    assert words[3] == "sweeps/injection_level.yaml" and words[4] == "--profile"
    entrypoint = shlex.join(
        [sys.executable, *words[1:3], file.name, *words[6:8], "--set", f"machine.runs={tmp_path / 'runs'}"]
    )
    scratch = Path(f"/tmp/mirai-bench-{free_port()}")
    script = HEAD.format(
        tmp=scratch, gcs=free_port(), dashboard=free_port(), agent=free_port(), entrypoint=entrypoint
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        done = subprocess.run(
            [*alone(), "bash", "-c", script],
            cwd=tmp_path,
            env=environment(tmp_path, PATH=path),
            capture_output=True,
            text=True,
            timeout=400,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 0 and "| baseline | 1 |" in done.stdout, done.stdout + done.stderr
    (cell,) = plan_at(file).sweep.cells
    assert RunFolder(cell.run_path).state == "done"
