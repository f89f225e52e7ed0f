"""Identity by content: short digests of JSON values, sha256 of files."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """12 hexadecimal digits of the canonical JSON's sha256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def file_sha256(path: str | Path) -> str:
    """`sha256:…` of a file, or of a folder's files with their names. Kept for as long as size and time of change stay the same."""
    path = Path(path).resolve()
    if not path.is_dir():
        return "sha256:" + _sha256(str(path), path.stat().st_size, path.stat().st_mtime_ns)
    lines = [
        f"{file.relative_to(path)} {file_sha256(file)}\n"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    ]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
