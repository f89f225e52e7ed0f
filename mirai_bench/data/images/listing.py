"""The files of a folder of class/image, what of it is left out, and the digests of their contents.

Reading a million images takes minutes, so digests are kept in a file beside the classes, or in the
folder of runs where that cannot be written. A file is read again if its size, times or inode differ.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mirai_bench.data.images.decoding import SUFFIXES
from mirai_bench.utils.cli import progress
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_bytes
from mirai_bench.utils.hashing import digest, stamp

log = logging.getLogger(__name__)

DIGESTS = ".mirai_bench_sha256"  # beside the class folders
READERS = 8  # threads that read files
WORTH_KEEPING = 1_000  # fewer files are read again


class Listing(NamedTuple):
    """The images of the class folders of one split."""

    files: list[os.DirEntry[str]]
    """Class by class, and by name."""
    labels: list[int]
    left_out: dict[str, int]
    """Number of files that are not read, by the reason."""
    empty: list[str]
    """Classes without any image."""


def list_images(root: Path, classes: list[str]) -> Listing:
    """Returns the images in the folders of these classes. A class without a folder has none."""
    files: list[os.DirEntry[str]] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    empty = []
    for label, name in enumerate(classes):
        folder = root / name
        entries = sorted(os.scandir(folder) if folder.is_dir() else (), key=lambda entry: entry.name)
        images = []
        for entry in entries:
            reason = _why_not(entry)
            if reason is None:
                images.append(entry)
            elif entry.is_dir():
                left_out[reason] += sum(len(names) for _, _, names in os.walk(entry.path))
            else:
                left_out[reason] += 1
        files += images
        labels += [label] * len(images)
        if not images:
            empty.append(name)
    return Listing(files, labels, dict(left_out), empty)


def _why_not(entry: os.DirEntry[str]) -> str | None:
    """Returns why an entry of a class folder is not read, or None if it is an image."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir():
        return "in a deeper folder"
    stem, _, ending = entry.name.rpartition(".")  # quicker than a Path, of which there are many
    suffix = f".{ending.lower()}" if stem else ""
    if suffix not in SUFFIXES:
        return f"*{suffix}" if suffix else "without an ending"
    # A link that leads nowhere is an image that cannot be read, which is an error.
    return None if entry.is_file() or not Path(entry.path).exists() else "no regular file"


def renumbered(class_names: Sequence[str]) -> int:
    """Returns how many classes have another number than their folder. Names that are words have none."""
    if not all(name.isdecimal() for name in class_names):
        return 0
    return sum(number != int(name) for number, name in enumerate(class_names))


def describe(left_out: dict[str, int]) -> str:
    """Returns in words what is left out, for instance "6 *.tif, 10 in a deeper folder"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))


# ---- contents


def content_hash(root: Path, files: list[os.DirEntry[str]], digests: list[str]) -> str:
    """Returns the sha256 of the names of the files within `root` and of their contents."""
    names = _names(root, files)
    lines = [f"{name} {sha256}\n" for name, sha256 in zip(names, digests, strict=True)]
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def is_held_out(sha256: str, share: float) -> bool:
    """Tells whether an image is among this share of all, as a function of its content.

    Copies of a file are on the same side, and a file that is added moves no other one.
    """
    return int(sha256[:16], 16) < share * 16**16


def _names(root: Path, files: list[os.DirEntry[str]]) -> list[str]:
    """Returns the names of the files within `root`, whatever its own name is."""
    return [entry.path[len(str(root)) + 1 :] for entry in files]


def file_digests(root: Path, files: list[os.DirEntry[str]], runs: Path) -> list[str]:
    """Returns the sha256 of each file, of which only those that have changed are read.

    Raises UserError for a file that cannot be read.
    """
    names = _names(root, files)
    stamps = [" ".join(map(str, stamp(_stat(entry)))) for entry in files]
    kept = next(filter(None, map(_read_digests, _places(root, runs))), {})
    found = [kept.get((name, facts)) for name, facts in zip(names, stamps, strict=True)]
    changed = [number for number, sha256 in enumerate(found) if sha256 is None]
    with ThreadPoolExecutor(READERS) as pool:
        new = pool.map(_sha256, [files[number].path for number in changed])
        shown = progress(new, f"hashing {root}", len(changed), "images")
        for number, sha256 in zip(changed, shown, strict=True):
            found[number] = sha256
    digests = [sha256 for sha256 in found if sha256 is not None]
    if changed and len(files) >= WORTH_KEEPING:
        _keep(_places(root, runs), zip(digests, stamps, names, strict=True))
    return digests


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise _unreadable(entry.path, error) from None


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f"{path} could not be opened ({error.strerror}): repair or remove it")


def _places(root: Path, runs: Path) -> tuple[Path, Path]:
    """Returns where the digests may be: beside the class folders, or in the folder of runs."""
    return root / DIGESTS, runs / "cache" / f"{digest(os.fsencode(root.resolve()).hex())}{DIGESTS}"


def _read_digests(path: Path) -> dict[tuple[str, str], str]:
    """Returns the digests that are kept in a file, by name and stamp. A damaged file has none."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    lines, _, checksum = content.removesuffix(b"\n").rpartition(b"\n")
    if checksum.decode(errors="replace") != hashlib.sha256(lines).hexdigest():
        return {}  # damaged, or by an earlier version: all files are read again
    kept = {}
    for line in lines.decode("utf-8", "surrogateescape").split("\n"):
        sha256, _, rest = line.partition("\t")
        facts, _, name = rest.partition("\t")
        kept[name, facts] = sha256
    return kept


def _keep(places: Iterable[Path], lines: Iterable[tuple[str, str, str]]) -> None:
    content = "\n".join("\t".join(line) for line in lines).encode("utf-8", "surrogateescape")
    content += f"\n{hashlib.sha256(content).hexdigest()}\n".encode()
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
            return
        except OSError:  # images may lie where nobody but their owner writes
            continue
