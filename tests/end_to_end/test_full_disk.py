"""A full disk, really made, at every writer: one message, nothing half-written, and the same command
goes on once there is room."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.full_disk import SCRATCH, Here, writers
from tests.support.paths import ROOT

# Calls that write to a disk, by the last part of their names.
WRITES = {
    "NpzWriter",
    "TemporaryDirectory",
    "append_line",
    "atomic",
    "cached",
    "copy",
    "copy2",
    "copyfile",
    "copytree",
    "mkdtemp",
    "open_memmap",
    "save_file",
    "savefig",
    "savez",
    "savez_compressed",
    "to_csv",
    "to_json",
    "touch",
    "write_array",
    "write_bytes",
    "write_image",
    "write_json",
    "write_safetensors",
    "write_text",
    "write_torch",
}
WHOLE_NAMES = {"np.save", "torch.save", "sqlite3.connect"}


def places():
    """Returns `module: function` of every function in which something is written."""
    found = set()
    for folder in ("mirai_bench", "analysis"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            name = module.removeprefix("mirai_bench.").removesuffix(".__init__")
            found |= {f"{name}: {where}" for where in writing(ast.parse(path.read_text()), "")}
    return found


def writing(tree, where):
    """Yields the names of the functions below `where` that write."""
    for node in ast.iter_child_nodes(tree):
        inner = where
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = f"{where}.{node.name}".lstrip(".")
        if isinstance(node, ast.Call) and writes(node):
            yield where
        yield from writing(node, inner)


def writes(call):
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last == "open":
        words = [word.value for word in call.args if isinstance(word, ast.Constant)]
        modes = [word for word in words if isinstance(word, str) and len(word) <= 3]
        return any(set(mode) & set("wax+") for mode in modes)
    is_copy_of_dict = last == "copy" and not name.startswith("shutil")
    return name in WHOLE_NAMES or (last in WRITES and not is_copy_of_dict)


def listed():
    """Returns the places of the table of writers."""
    found = set()
    for writer in writers(Here(Path("nowhere"))).values():
        for part in writer.places.split(", "):
            module, _, functions = part.partition(": ")
            found |= {f"{module}: {function}" for function in functions.split()}
    return found


def test_every_function_that_writes_is_in_the_table():
    assert places() == listed() | SCRATCH


def test_the_search_for_writers_finds_them():
    source = (
        "def f():\n  open('x', 'w')\n  def g(): p.write_text('')\ndef h(): open(x); d.copy(); open(x, 'rb')"
    )
    assert set(writing(ast.parse(source), "")) == {"f", "f.g"}


CAN_MOUNT = [["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]]


def own_mounts():
    """Returns the command that gives a process mounts of its own, or None if there is none here."""
    for words in CAN_MOUNT if shutil.which("unshare") else []:
        probe = [*words, "mount", "-t", "tmpfs", "full", "/mnt"]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return words
    return None


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Tries every writer in one process → how its writes ended, by its name."""
    unshare = own_mounts()
    if unshare is None:
        pytest.skip("a disk of its own size cannot be mounted here")
    folder = tmp_path_factory.mktemp("full")
    words = [*unshare, sys.executable, "-m", "tests.support.full_disk", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.slow  # 2 min for all of them
@pytest.mark.parametrize("name", writers(Here(Path("nowhere"))))
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(seen, name):
    warns = writers(Here(Path("nowhere")))[name].warns
    for end in seen[name]:
        assert end["left"] == end["changed"] == [], end
        assert "Traceback" not in end["said"], end["said"]
        if end["pages"] is None:
            assert (end["code"], end["said"].count("error: ")) == (0, 0), end
        elif end["code"]:
            assert end["code"] == 2 and not warns, end
            assert end["said"].count("error: ") == 1, end
            assert any(word in end["said"] for word in ("No space", "full", "needs")), end
    codes = [end["code"] for end in seen[name]]
    assert warns or codes[0] == 2, "the disk was full"
    assert seen[name][-2]["code"] == 0, "it succeeds at last"
