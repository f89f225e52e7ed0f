"""Files are written whole or not at all, made once, and locked."""

import errno
import json
import threading

import pytest
from filelock import FileLock

from mirai_bench.utils import files
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import (
    append_line,
    atomic,
    cached,
    locked,
    remove_leftovers,
    write_json,
    write_text,
)


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half of")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["file.json"], "nothing temporary is left"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for content in ("first", "second"):
        with atomic(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["second"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    write_text(tmp_path / "kept.txt", "kept")
    (tmp_path / "kept.txt.0123abcd.tmp").write_text("half")
    others = {"other.txt.0123abcd.tmp", "kept.txt.gz.0123abcd.tmp"}
    for name in others:
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path / "kept.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"kept.txt", *others}


def test_two_processes_build_a_cached_folder_once(tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        (folder / "content").write_text("made")

    threads = [threading.Thread(target=cached, args=(tmp_path / "cache" / "made", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (cached(tmp_path / "cache" / "made", build) / "content").read_text() == "made"


def test_a_build_that_fails_leaves_no_folder(tmp_path):
    def fails(folder):
        (folder / "half").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        cached(tmp_path / "made", fails)
    assert not (tmp_path / "made").exists()


def test_a_build_that_resumes_finds_what_an_interrupted_one_wrote(tmp_path):
    def build(folder):
        parts.append(sorted(path.name for path in folder.iterdir()))
        (folder / f"part{len(parts)}").write_text("written")
        if len(parts) == 1:
            raise KeyboardInterrupt

    parts = []
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "made", build, resumes=True)
    assert not (tmp_path / "made").exists()
    folder = cached(tmp_path / "made", build, resumes=True)
    assert parts == [[], ["part1"]]
    assert {path.name for path in folder.iterdir()} == {"part1", "part2", "sha256.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"made", "made.lock"}


def test_a_lock_is_held_by_one_and_the_other_is_told(tmp_path):
    lock = tmp_path / "folder" / "small.lock"
    with locked(lock, "busy"), pytest.raises(UserError, match="busy"), locked(lock, "busy"):
        pass
    with locked(lock, "busy"), pytest.raises(TimeoutError), FileLock(lock, timeout=0):
        pass
    with locked(lock, "busy", wait=True):
        pass


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "lose", "add"])
def test_a_cached_folder_that_was_damaged_is_made_again(tmp_path, damage):
    def build(folder):
        built.append(folder)
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(bytes(range(200)))

    built = []
    folder = tmp_path / "made"
    cached(folder, build)
    weights = folder / "inner" / "weights"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    if damage == "add":
        (folder / "other").write_bytes(b"")
    elif damage == "lose":
        weights.unlink()
    else:
        weights.write_bytes({"flip": content, "cut": content[:99], "empty": b""}[damage])
    files._checked.clear()  # as in another process
    cached(folder, build)
    assert len(built) == 2
    assert weights.read_bytes() == bytes(range(200))
    files._checked.clear()
    cached(folder, build)
    assert len(built) == 2, "what is intact is kept"


def test_a_cached_folder_of_an_earlier_version_is_kept_and_hashed(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "weights").write_bytes(b"old")
    folder = cached(tmp_path / "made", lambda folder: pytest.fail("it is there"))
    assert json.loads((folder / files.DIGESTS).read_text()).keys() == {"weights"}
    (folder / "weights").write_bytes(b"odd")
    files._checked.clear()
    cached(folder, lambda folder: (folder / "weights").write_bytes(b"new"))
    assert (folder / "weights").read_bytes() == b"new"


def test_a_cached_folder_that_was_removed_is_made_again(tmp_path):
    for _ in range(2):
        folder = cached(tmp_path / "made", lambda folder: (folder / "x").touch())
        assert (folder / "x").exists()
        files.remove(folder)


def test_files_are_as_open_to_others_as_the_umask_says(tmp_path):
    with atomic(tmp_path / "weights") as temporary:
        temporary.touch(0o600)  # as safetensors makes them
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o666 & ~files._UMASK


def test_a_lock_that_cannot_be_opened_is_a_message(tmp_path):
    (tmp_path / "run.lock").mkdir()  # nobody can open a folder for writing, not even root
    with pytest.raises(UserError, match=r"run\.lock could not be opened"), locked(tmp_path / "run.lock"):
        pass


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "one")
    append_line(path, "zwei \u20ac", durable=True)
    assert path.read_text(encoding="utf-8") == "one\nzwei \u20ac\n"

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_line(path, "three", durable=True)
    assert path.read_text(encoding="utf-8") == "one\nzwei \u20ac\n"


def test_a_line_never_runs_into_one_that_was_cut_off(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n{"b": ')
    append_line(path, '{"c": 3}')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"b": ', '{"c": 3}']


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.json'"), atomic(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
