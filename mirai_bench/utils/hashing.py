"""Identity by content: short digests of JSON values, and the sha256 of files."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """Returns the first 12 hexadecimal digits of the sha256 of the value's canonical JSON."""
    # Sorted and without spaces. Folders are named by these digits, so that with another form of the
    # JSON none of them would be found again.
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def file_sha256(path: str | Path) -> str:
    """Returns `sha256:…` of a file, or of a folder's files together with their names.

    The hash of a file is cached for as long as what the system says of it stays the same.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        return "sha256:" + _sha256(str(path), stamp(path.stat()))
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    listing = "".join(f"{file.relative_to(path)} {file_sha256(file)}\n" for file in files)
    # Names need not be UTF-8: bytes that are not stay as they are.
    return "sha256:" + hashlib.sha256(os.fsencode(listing)).hexdigest()


def stamp(facts: os.stat_result) -> tuple[int, int, int, int]:
    """Returns what changes if a file is written or replaced: size, both times in ns, and inode."""
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


@lru_cache(maxsize=256)
def _sha256(path: str, stamp: tuple[int, int, int, int]) -> str:
    # `stamp` only belongs to the key of the cache: a file that changes is hashed again.
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
