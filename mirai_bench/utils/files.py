"""Things made once and kept: a folder named by the digest of what it is made from, made under a lock and moved into place whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mirai_bench.utils.errors import UserError


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


def write_atomic(path: Path, content: str) -> None:
    """A reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}): remove it and prepare the codes again") from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def write_array(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)
