"""What a record says about the code that made it: its commit and the versions of its packages."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mirai-bench", "torch", "numpy", "torch-fidelity", "ray", "mlflow", "timm")
HERE = Path(__file__).resolve().parent


@lru_cache
def git_state(folder: Path = HERE) -> dict[str, Any]:
    """Returns the commit of a checkout, by default of this code, and whether tracked files differ.

    Both are None if the folder is not part of a git checkout.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    """Returns what a git command prints about a checkout, or None if it fails."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@lru_cache
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that matter to a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
