"""Things made once and kept: a folder named by the digest of what it is made from, made under a lock and moved into place whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, made by `build(temporary folder)` unless it is there; a second process waits for the first. Never half-written."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            temporary = Path(f"{folder}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            build(temporary)
            os.replace(temporary, folder)
    return folder
