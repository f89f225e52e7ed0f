"""Files that are written whole or not at all, folders that are made once and checked, and locks.

`atomic` is the only place of the project that moves a finished file or folder to its name.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256

log = logging.getLogger(__name__)

DIGESTS = "sha256.json"  # in a cached folder: the hash of each of its other files
# Larger files are compared by their size alone: reading one takes longer than what it saves.
MOST_HASHED = 16 * 2**30
_checked: set[Path] = set()  # cached folders whose files this process has compared with their hashes
# Some libraries make files that their owner alone may read, whatever the umask says.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic(path: Path, *, resumes: bool = False) -> Iterator[Path]:
    """Yields a temporary path. When the block ends, what lies there replaces `path`.

    The block may create a file or a folder. A reader sees the old content or the new one, never a
    part of it, and the content is on the disk before the name changes. If the block raises, the
    temporary path is removed and `path` keeps its old content.

    With `resumes` the temporary path has one name and stays if the block raises, or the process is
    killed, so that the next block finds what this one has written. The caller then makes sure, by a
    lock, that only one process writes.
    """
    # In the folder of `path`, because a file cannot be renamed into another file system, and with a
    # name of its own, because two processes may write the same file.
    ending = "partial" if resumes else f"{uuid.uuid4().hex[:8]}.tmp"
    temporary = path.with_name(f"{path.name}.{ending}")
    try:
        yield temporary
        _sync(temporary)
        if temporary.is_dir():
            remove(path)  # a folder takes only a name that is free. For a moment there is none.
        temporary.replace(path)
    except BaseException as error:  # KeyboardInterrupt, too
        if not resumes:
            remove(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it was
        raise


def _sync(path: Path) -> None:
    """Waits until the file, or every file of the folder, is on the disk."""
    # Without this a power failure could leave the new name with empty content.
    for file in (path, *path.rglob("*")):
        if file.is_file():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
                os.fchmod(opened.fileno(), 0o666 & ~_UMASK)


def remove(path: Path) -> None:
    """Removes a file or a folder with all its content. Does nothing if there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes temporary files that killed writers of `path` left, and what SQLite put beside them.

    The caller makes sure that nobody is writing `path`, for instance by a lock.
    """
    for left in path.parent.glob(f"{path.name}.????????.tmp*"):
        remove(left)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Appends a line in UTF-8, whole or not at all. With `durable` it is then on the disk.

    A last line that a killed process did not finish gets its end: two never run together.
    """
    # Opened for each line: whoever moves the file finds no open handle on it.
    with open(path, "ab+", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        content = f"{line}\n".encode()
        if before:
            file.seek(-1, os.SEEK_END)
            content = content if file.read(1) == b"\n" else b"\n" + content
        try:
            while content:  # a disk that is nearly full takes a part
                content = content[file.write(content) :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises UserError with the advice if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable ({error}): {advice}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not readable (it holds a {type(found).__name__}): {advice}")
    return found


def cached(folder: Path, build: Callable[[Path], None], *, resumes: bool = False) -> Path:
    """Returns `folder`, which `build(temporary folder)` makes first if it does not exist.

    With `resumes` the temporary folder of a build that was interrupted is given to the next one.

    A second process waits for the first, and a half-built folder is never seen. The folder's name
    should contain the digest of everything that its content depends on. The files are compared with
    the hashes that were taken when they were made, and made again if they differ: a damaged network
    gives other metrics, and nothing else would tell. Folders of earlier versions get their hashes now.
    """
    if (folder in _checked and folder.is_dir()) or _is_intact(folder):
        return folder
    with locked(Path(f"{folder}.lock"), wait=True):
        if folder.is_dir() and not (folder / DIGESTS).exists():
            write_json(folder / DIGESTS, _facts(folder))
        if not _is_intact(folder):  # another process may have built it while this one waited
            if folder.is_dir():
                log.warning(f"{folder} is damaged: it is made again")
            remove_leftovers(folder)
            with atomic(folder, resumes=resumes) as temporary:
                temporary.mkdir(exist_ok=resumes)
                build(temporary)
                write_json(temporary / DIGESTS, _facts(temporary))
    _checked.add(folder)
    return folder


def _facts(folder: Path) -> dict[str, str]:
    """Returns the hash of each file of a cached folder, or the size of a very large one."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DIGESTS]
    return {str(path.relative_to(folder)): _fact(path) for path in files}


def _fact(path: Path) -> str:
    size = path.stat().st_size
    return f"{size} bytes" if size > MOST_HASHED else file_sha256(path)


def _is_intact(folder: Path) -> bool:
    """Tells whether a cached folder is there, with the content that it was made with."""
    try:
        is_intact = json.loads((folder / DIGESTS).read_bytes()) == _facts(folder)
    except (OSError, ValueError):  # there is no folder, or one without hashes
        return False
    if is_intact:
        _checked.add(folder)
    return is_intact


@contextmanager
def locked(path: Path, busy: str = "", *, wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path`, whose folder is made if there is none.

    If another process holds it, this waits or, without `wait`, raises UserError with the message
    `busy`. Raises UserError if the file may not be opened. The system releases a lock when its
    process ends, however it ends.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)  # -1 waits for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(busy) from None
    except OSError as error:
        raise UserError(
            f"{path} could not be opened ({error.strerror}): whoever shares a folder of runs needs "
            "the right to write in it (umask 002, a common group), or writes machine.runs: another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
