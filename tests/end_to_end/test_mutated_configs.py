"""Mutated configurations: no traceback, and what is refused has exit code 2 and one message, within
5 s and 1 GB."""

import os
import re
import resource
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.mutated_configs import files, read_in_this_process, write_files
from tests.support.paths import ROOT

SECONDS = 5.0  # of CPU time
BYTES = 2**30
OUTPUT = 10_000  # characters that a command may say of a wrong file
COMMANDS = {
    "sweep": ("mirai_bench.sweep", "sweep.yaml", "--profile", "profile.yaml", "--dry-run"),
    "train": ("mirai_bench.train", "profile.yaml", "--dry-run"),
}


def many(number):
    # The first failure is told as it is: to find a smaller one would take an hour.
    return settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


@pytest.mark.nightly  # 10 min
def test_ten_thousand_in_one_process(tmp_path, figures):
    outcomes: Counter[str] = Counter()
    seconds = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @many(10_000)
    @given(texts=files())
    def read(texts):
        write_files(texts, tmp_path)
        seconds.append(read_in_this_process(tmp_path, outcomes))
        assert seconds[-1] < SECONDS

    read()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    figures(
        f"{len(seconds):,} pairs of files: {dict(outcomes)}, at most {max(seconds):.2f} s of CPU time, "
        f"{grown / 1e6:.0f} MB more than before"
    )
    assert len(seconds) >= 10_000 and grown < BYTES


# The system counts the memory of the process that started another one as its own, so each command
# writes down what it took at most.
WRAPPED = """
import atexit, pathlib, runpy, sys
name = sys.argv.pop(1)
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path("status").write_text(status.read_text()))
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def give(words, folder):
    """Gives a command → its exit code, output, errors, seconds of CPU time and most memory in bytes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", WRAPPED, *words], cwd=folder, env=environment, stdout=out, stderr=err
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    texts = [(folder / name).read_text(errors="replace") for name in ("out", "err")]
    (memory,) = re.findall(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
    return process.returncode, *texts, usage.ru_utime + usage.ru_stime, int(memory) * 1024


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(15, marks=pytest.mark.slow),  # 1 min
        pytest.param(100, marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_through_the_command(name, number, tmp_path, figures):
    outcomes: Counter[int] = Counter()
    most = [0.0, 0]
    began = time.monotonic()

    @many(number)
    @given(texts=files())
    def command(texts):
        write_files(texts, tmp_path)
        code, out, err, seconds, memory = give(COMMANDS[name], tmp_path)
        outcomes[code] += 1
        if code == 2:
            most[:] = max(most[0], seconds), max(most[1], memory)
        assert code in (0, 2) and "Traceback" not in err, err
        if code == 2:
            assert seconds < SECONDS and memory < BYTES, (seconds, memory)
            assert out == "" and err.startswith("error: ") and err.count("error: ") == 1, err
            assert len(err) < OUTPUT

    command()
    figures(
        f"{outcomes.total()} x {name} --dry-run in {time.monotonic() - began:.0f} s: exit codes "
        f"{dict(outcomes)}; refused with at most {most[0]:.1f} s of CPU time and {most[1] / 1e6:.0f} MB"
    )
