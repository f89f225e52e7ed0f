"""What a record says about where it comes from: commit, versions, machine."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mirai-bench", "torch", "numpy", "torch-fidelity", "ray", "mlflow", "timm")


@lru_cache
def git_state() -> dict[str, Any]:
    """The commit of this code and whether tracked files differ from it; None where it is not a git checkout."""

    def git(*words: str) -> str | None:
        folder = Path(__file__).resolve().parent
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


@lru_cache
def versions() -> dict[str, str]:
    """Of Python and of those packages that matter to a number and are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
