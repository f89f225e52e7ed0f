"""What a record says about the code that made it: its commit and the versions of its packages."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mirai_bench.utils.hashing import digest, file_sha256

PACKAGES = ("mirai-bench", "torch", "numpy", "torch-fidelity", "ray", "mlflow", "timm")
PACKAGE = Path(__file__).resolve().parents[1]


@lru_cache
def git_state(folder: Path = PACKAGE) -> dict[str, Any]:
    """Returns the commit of a checkout, by default of this code, and whether its tracked files differ.

    Only the files of the folder count: a table that is made again changes no run. Both are None if the
    folder is not tracked by git, such as that of an installed package, in whatever checkout it may lie.
    Then `content` is the hash of its Python files.
    """
    if not _git(folder, "ls-files", "--", "."):
        return {"commit": None, "dirty": None, "content": content_hash(folder)}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def content_hash(folder: Path) -> str:
    """Returns the first 12 hexadecimal digits of the sha256 of a folder's Python files and their names."""
    files = sorted(folder.rglob("*.py"))
    return digest({file.relative_to(folder).as_posix(): file_sha256(file) for file in files})


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
