"""Wheels and virtual environments of their own, made with the commands that a user gives."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support.paths import ROOT

# Variables that would lead a command to this checkout, to somebody's servers, or to files that a
# reader does not have.
FOREIGN = (
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "RAY_",
    "MLFLOW_",
    "MIRAI_BENCH_",
    "COVERAGE_",
    "COV_CORE_",
)
END_OF_OUTPUT = 4000  # characters of a command's output that the message of a failed test shows


def clean_environment(programs: Path, **more: str) -> dict[str, str]:
    """Returns the variables of a command that shall find nothing of this checkout.

    `programs` is the folder `bin` of the Python that the command means by `python`.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    kept["PATH"] = f"{programs}{os.pathsep}{kept['PATH']}"
    kept["OMP_NUM_THREADS"] = "1"
    kept["PYTHONDONTWRITEBYTECODE"] = "1"  # nothing is to be left in the checkout
    kept["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return kept | more


def run(
    words: Sequence[str | Path], folder: Path, environment: dict[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder. Fails the test, with the end of its output, if it fails."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    command = " ".join(map(str, words))
    output = (done.stdout + done.stderr)[-END_OF_OUTPUT:]
    assert done.returncode == 0, f"{command}\nended with exit code {done.returncode}:\n{output}"
    return done


def build_wheel(folder: Path) -> Path:
    """Builds the wheel of this checkout in a folder. Returns the wheel's path."""
    here = Path(sys.executable).parent
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    run([*words, ROOT], folder, clean_environment(here))
    (wheel,) = folder.glob("mirai_bench-*.whl")
    return wheel


def new_environment(python: str | Path, folder: Path) -> Path:
    """Makes a virtual environment of this Python in a folder. Returns its own Python."""
    run([python, "-m", "venv", folder], folder.parent, clean_environment(Path(python).parent))
    return folder / "bin" / "python"


def install(python: Path, what: Iterable[str | Path], timeout: float = 1800) -> None:
    """Installs packages into the environment of this Python with pip."""
    words = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *what]
    run(words, python.parent, clean_environment(python.parent), timeout)
