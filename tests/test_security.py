"""Nothing that is read can run code: each reader against a file that tries, and the source against
calls that would let it."""

import ast
import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mirai_bench.checkpoint.store import load_weights
from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.data.images import cifar10, fashion_mnist
from mirai_bench.data.images.image_sets import open_images
from mirai_bench.data.images.vgg16 import read_weights
from mirai_bench.data.shards import open_shards
from mirai_bench.data.tokenizers import vq16
from mirai_bench.evaluate.references import _read_own
from mirai_bench.foresight.encoders.feature_cache import CachedFeatures
from mirai_bench.utils.errors import UserError
from tests.support.paths import ROOT
from tests.support.small_sweeps import ARMS, descendants, environment, finish, start

CPU = torch.device("cpu")


class Trap:
    """Unpickled, it makes the folder `sprung`."""

    def __init__(self, sprung):
        self.sprung = str(sprung)

    def __reduce__(self):
        return os.mkdir, (self.sprung,)


def torch_file(path, trap):
    torch.save({"model": {"w": trap}}, path)


def bare_pickle(path, trap):
    path.write_bytes(pickle.dumps({"model": trap}, protocol=2))


def npz(path, trap):
    names = ("arr_0", "x_train", "y_train", "manifest", "mu", "sigma", "features")
    np.savez(path, **dict.fromkeys(names, np.array([trap], dtype=object)))


def npy(path, trap):
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.array([trap], dtype=object))


READERS = {
    "checkpoint.pt": (torch_file, load_weights),
    "bare.pt": (bare_pickle, load_weights),
    "vq_ds16_c2i.pt": (torch_file, vq16.read_model),
    "vgg16.pt": (torch_file, read_weights),
    "images.npz": (npz, open_images),
    "cifar10.npz": (npz, lambda path: cifar10.read(path, "train")),
    "fashion_mnist.npz": (npz, lambda path: fashion_mnist.read(path, "train")),
    "reference.npz": (npz, lambda path: _read_own(path, None)),
    "features.npy": (npy, lambda path: CachedFeatures(path, CPU)),
    "shards/part.npy": (npy, lambda path: open_shards(path.parents[1], ["part"])),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_would_run_code_is_refused_and_runs_none(name, tmp_path):
    write, read = READERS[name]
    write(tmp_path / name, Trap(tmp_path / "sprung"))
    with pytest.raises(
        (UserError, ValueError)
    ):  # numpy's own is a ValueError: "Object arrays cannot be loaded"
        read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_the_trap_is_one(tmp_path):
    bare_pickle(tmp_path / "x", Trap(tmp_path / "sprung"))
    pickle.loads((tmp_path / "x").read_bytes())
    assert (tmp_path / "sprung").is_dir()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [SPRUNG]", "!!python/name:os.mkdir"])
def test_yaml_makes_plain_values_alone(tag, tmp_path):
    (tmp_path / "x.yaml").write_text(f"axis: {tag}\n".replace("SPRUNG", str(tmp_path / "sprung")))
    with pytest.raises(UserError, match="is not readable YAML"):
        read_yaml(tmp_path / "x.yaml")
    assert not (tmp_path / "sprung").exists()


# ---- the source

FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pd.read_pickle",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "subprocess.getoutput",
}
KEYWORDS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
# It runs functions of the official checkout that the user names on the command line, whose modules
# it imports besides.
ALLOWED = {("mirai_bench/benchmark/peer/checkout.py", "exec")}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords}


def offences(path):
    for name, keywords in calls(ast.parse(path.read_text())):
        if name in FORBIDDEN:
            yield name
        if name in KEYWORDS:
            keyword, value = KEYWORDS[name]
            given = keywords.get(keyword)
            if not (isinstance(given, ast.Constant) and given.value is value):
                yield f"{name} without {keyword}={value}"
        if "shell" in keywords:
            yield f"{name} through a shell"


def test_no_call_that_would_run_what_is_read():
    paths = [path for folder in ("mirai_bench", "analysis") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 80
    found = {(str(path.relative_to(ROOT)), offence) for path in paths for offence in offences(path)}
    assert found == ALLOWED


def test_the_check_of_the_source_sees_what_it_looks_for(tmp_path):
    lines = [
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
        "eval(t)",
        "torch.load(p, weights_only=True)",
    ]
    (tmp_path / "x.py").write_text("\n".join(lines))
    assert len(list(offences(tmp_path / "x.py"))) == 4


# ---- servers

LOCAL_RAY = """
import os, subprocess, sys, ray
from mirai_bench.sweep.ray_session import session
JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"
with session(None, {}):
    words = [sys.executable, "-c", JOIN, ray.get_runtime_context().gcs_address]
    for more in ({}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        print(subprocess.run(words, env=os.environ | more, capture_output=True, timeout=60).returncode == 0)
"""


@pytest.mark.slow  # a start of Ray
def test_a_ray_of_ours_lets_in_nobody_without_its_token(tmp_path):
    """It listens on every address of the machine, whatever it is told (`_node_ip_address`, too):
    the token keeps others out, since 2.59 without being asked to."""
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_RAY],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


# How the processes call themselves that listen while a sweep runs: Ray's own, and the driver, which is
# one of Ray's processes, too.
OF_RAY = ("gcs_server", "raylet", "ray/", "ray::", "mirai_bench.sweep")


def listening(pids):
    """Yields (pid, address as the kernel writes it) of each socket of TCP that listens."""
    addresses = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                addresses[f"socket:[{fields[9]}]"] = fields[1].split(":")[0]
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (name := os.readlink(handle)) in addresses:
                        yield pid, addresses[name]


@pytest.mark.slow  # a start of Ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_only_ray_listens_during_a_sweep(sweep_file, tmp_path, trained_run, figures):
    """No MLflow and no page of Ray's. Ray's own ports want the token of the session (above)."""
    file = sweep_file({"baseline": ARMS["baseline"]}, train={"epochs": 400}, evaluation={"at": [400]})
    driver = start(file)
    try:
        while not list((tmp_path / "runs").glob("*/journal.jsonl")):
            time.sleep(0.5)
            assert driver.poll() is None, finish(driver)[2]
        names = dict(descendants(driver.pid)) | {driver.pid: "mirai_bench.sweep"}
        found = [(names[pid], address) for pid, address in listening(names)]
        folders = {name for text in names.values() for name in re.findall(r"/\S*/ray-\w+", text)}
        assert folders and {os.stat(folder).st_mode & 0o777 for folder in folders} == {0o700}
    finally:
        driver.send_signal(signal.SIGTERM)
        finish(driver)
    assert found and all(any(part in name for part in OF_RAY) for name, _ in found), found
    assert not any("mlflow" in name for name, _ in found)
    everywhere = sum(set(address) == {"0"} for _, address in found)
    figures(f"{len(found)} sockets listen during a sweep, {everywhere} of them on all addresses, all Ray's")
