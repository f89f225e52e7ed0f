"""What the files of sweeps/cluster name exists, and their commands are understood.

tests/end_to_end/test_cluster_runs.py runs them.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from mirai_bench.benchmark.__main__ import parser as benchmark_parser
from mirai_bench.config.load import SWEEPS, load_run
from mirai_bench.data import prepare
from mirai_bench.data.shards import codes_folder
from mirai_bench.sweep.__main__ import command
from mirai_bench.sweep.__main__ import parser as sweep_parser
from tests.support.paths import ROOT

CLUSTER = SWEEPS / "cluster"
YAML = ("data.yaml", "mlflow_server.yaml", "rayjob.yaml")


def documents(*names):
    return [document for name in names for document in yaml.safe_load_all((CLUSTER / name).read_text())]


def pods(tree):
    """Yields every pod of a document, which is what holds containers."""
    if isinstance(tree, dict):
        if "containers" in tree:
            yield tree
        for value in tree.values():
            yield from pods(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from pods(value)


def named(kind):
    return {document["metadata"]["name"] for document in documents(*YAML) if document["kind"] == kind}


def dockerfile():
    """Returns (instruction, the rest) in order, without comments and line ends."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


# ---- what is written


def test_the_readme_names_every_file():
    text = (CLUSTER / "README.md").read_text()
    files = {path.name for path in CLUSTER.iterdir()} - {"README.md", "Dockerfile.dockerignore"}
    assert {name for name in files if f"| `{name}` |" in text} == files


def test_pods_are_confined_and_mount_what_there_is():
    found = list(pods(documents(*YAML)))
    assert len(found) == 5
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])} | {
            "data": {}
        }  # `data` is PostgreSQL's template
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["image"] in ("postgres:17-bookworm", "registry.example.com/mirai-bench:latest")
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
        claims = {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        }
        maps = {v["configMap"]["name"] for v in volumes.values() if "configMap" in v}
        assert claims <= named("PersistentVolumeClaim") and maps <= named("ConfigMap")


def test_passwords_come_from_the_secret_that_the_head_of_the_file_creates():
    created = set(re.findall(r"--from-literal=([a-z-]+)=", (CLUSTER / "mlflow_server.yaml").read_text()))
    asked = set()
    for pod in pods(documents(*YAML)):
        for variable in (v for container in pod["containers"] for v in container.get("env", [])):
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "mirai-bench-mlflow"
                asked.add(reference["key"])
            else:
                assert not re.search("PASSWORD|SECRET|TOKEN|KEY", variable["name"]), variable
    assert asked == created
    text = "".join((CLUSTER / name).read_text() for name in (*YAML, "slurm.sbatch", "Dockerfile"))
    assert not re.search(r"://[^/\s@]+:[^/\s@]+@", text), "an address with a password"


def moved(words, folder):
    """Returns a pod's command for this machine.

    /shared becomes a folder with stand-ins for the files that only have to exist.
    """
    (folder / "vq_ds16_c2i.pt").write_bytes(b"weights")
    return [word.replace("/shared", str(folder)) for word in words]


def test_the_rayjob_is_a_sweep_that_fits_its_nodes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (job,) = documents("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    python, m, module, *words = moved(shlex.split(job["spec"]["entrypoint"]), tmp_path)
    assert (python, m, module) == ("python", "-m", "mirai_bench.sweep") and words[3:5] == [
        "--address",
        "auto",
    ]
    assert command([*words, "--dry-run"]) == 0 and "15 cells, 15 to run" in capsys.readouterr().out
    cluster = job["spec"]["rayClusterSpec"]
    assert ("ARG", f"RAY_VERSION={cluster['rayVersion']}") in dockerfile() and cluster["authOptions"] == {
        "mode": "token"
    }
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no trial without a GPU"
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    machine = load_run(Path("imagenet256_b"), [f"tokenizer.weights={tmp_path / 'vq_ds16_c2i.pt'}"]).machine
    limits = worker["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == machine.gpus and int(limits["cpu"]) >= machine.cpus
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    address = {v["name"]: v.get("value") for v in head["env"]}["MLFLOW_TRACKING_URI"]
    host, port = address.removeprefix("http://").split(":")
    assert host in named("Service")
    (server,) = [
        c for pod in pods(documents("mlflow_server.yaml")) for c in pod["containers"] if c["name"] == "mlflow"
    ]
    assert f"--port={port}" in server["command"] and any(
        f"{host}:{port}" in word for word in server["command"]
    )


def test_the_preparation_is_of_the_data_that_the_sweep_reads(tmp_path):
    (job,) = [document for document in documents("data.yaml") if document["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    python, m, module, *words = moved(container["command"], tmp_path)
    assert (python, m, module) == ("python", "-m", "mirai_bench.data.prepare")
    args = prepare.parser().parse_args(words)
    assert args.processes <= int(container["resources"]["requests"]["cpu"])
    sweep = moved(shlex.split(documents("rayjob.yaml")[0]["spec"]["entrypoint"]), tmp_path)
    sets = [word for before, word in pairwise(sweep) if before == "--set"]
    prepared = load_run(args.config, args.settings)
    read = load_run(sweep[sweep.index("--profile") + 1], sets)
    assert codes_folder(prepared) == codes_folder(read)


def test_the_dockerfile_installs_the_project_and_leaves_root():
    steps = dockerfile()
    assert [word for word, _ in steps if word == "FROM"] == ["FROM"] and steps[0][0] == "FROM"
    for rest in (rest for word, rest in steps if word == "COPY"):
        *sources, _ = [word for word in rest.split() if not word.startswith("--")]
        assert all((ROOT / source).exists() for source in sources), rest
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (install,) = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert set(re.search(r"-e '\.\[([a-z,]+)\]'", install)[1].split(",")) <= set(extras)
    assert ("USER", "1000") in steps and steps.index(("USER", "1000")) > max(
        i for i, (word, _) in enumerate(steps) if word == "RUN"
    )
    assert not [word for word, _ in steps if word == "ENTRYPOINT"], "docker run IMAGE python -m …"
    (default,) = [rest for word, rest in steps if word == "CMD"]
    words = yaml.safe_load(default)
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
    assert (
        words[0] == "python" and done.returncode == 0 and "usage: python -m mirai_bench.sweep" in done.stdout
    )


def test_what_the_image_leaves_out_is_not_part_of_the_project():
    """If the image lacks a file that git knows, every record says that the checkout was changed."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    left_out = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    for name in listed.stdout.splitlines():
        parts = [Path(name), *Path(name).parents]
        assert not [
            p
            for p in parts
            for pattern in left_out
            if p.match(pattern.removeprefix("**/")) and ("**" in pattern or len(p.parts) == 1)
        ]


@pytest.mark.parametrize(
    ("linter", "file"),
    [("hadolint", "Dockerfile"), ("shellcheck", "slurm.sbatch"), ("shellcheck", "first_gpu.sh")],
)
def test_linters_are_content(linter, file):
    if shutil.which(linter) is None:
        pytest.skip(f"{linter} is not installed: pip install -e '.[test]' on Linux brings it")
    done = subprocess.run(
        [linter, *(["--severity=warning"] if linter == "shellcheck" else []), CLUSTER / file],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_slurm_examples_are_sweeps(tmp_path, monkeypatch, capsys):
    text = (CLUSTER / "slurm.sbatch").read_text()
    assert subprocess.run(["bash", "-n", CLUSTER / "slurm.sbatch"]).returncode == 0
    example = re.search(r"slurm\.sbatch (sweeps/.*)\\\n#\s+(.*)\n", text)
    words = shlex.split(example[1] + example[2].replace("vq_ds16_c2i.pt", str(tmp_path / "w.pt")))
    (tmp_path / "w.pt").write_bytes(b"weights")
    monkeypatch.chdir(ROOT)
    assert command([*words, "--address", "10.0.0.1:6379", "--dry-run"]) == 0
    assert "15 cells" in capsys.readouterr().out


# Stands for `python`: it writes down what it was called with, a word a line.
CALLED = """#!/bin/sh
printf '%s\\n' "$@" >> "$CALLS"
echo >> "$CALLS"
"""


def calls_of(tmp_path, *words):
    """Returns what first_gpu.sh calls python with, call by call, and what it says."""
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(CALLED)
    stand_in.chmod(0o755)
    environment = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    done = subprocess.run(
        ["bash", CLUSTER / "first_gpu.sh", *words],
        env=environment | {"PEERS": "../Mirai:../LlamaGen", "DATA": "cifar10.npz", "PROFILE": "cifar10_cpu"},
        capture_output=True,
        text=True,
    )
    calls = tmp_path / "calls"
    return done, [call.split("\n") for call in calls.read_text().split("\n\n")[:-1]] if calls.exists() else []


@pytest.mark.parametrize(
    ("part", "kind", "file"),
    [
        ("b", "train", "train_cuda.json"),
        ("large", "train", "train_cuda.json"),
        ("sample", "sample", "sample_cuda.json"),
        ("evaluate", "evaluate", "evaluate_cuda.json"),
    ],
)
def test_the_first_gpu_is_measured_with_commands_that_are_understood(tmp_path, part, kind, file):
    done, calls = calls_of(tmp_path, part, str(tmp_path / "out"))
    assert done.returncode == 0 and len(calls) == (2 if part == "b" else 1), done.stderr
    for call in calls:
        assert call[:2] == ["-m", "mirai_bench.benchmark"]
        args = benchmark_parser().parse_args(call[2:])
        assert (args.kind, args.device) == (kind, "cuda") and 410 <= args.seconds <= 420
        assert args.out == tmp_path / "out" / file
        assert args.peer == ([] if kind == "evaluate" else [Path("../Mirai"), Path("../LlamaGen")])
    if part == "b":  # the whole batch, and less memory
        assert [benchmark_parser().parse_args(call[2:]).micro_batches for call in calls] == [1, 2]


def test_the_first_gpu_has_a_study(tmp_path):
    done, (codes, cells, table) = calls_of(tmp_path, "study", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert codes[1] == "mirai_bench.data.prepare" and prepare.parser().parse_args(codes[2:])
    assert cells[1] == "mirai_bench.sweep"
    args = sweep_parser().parse_args(cells[2:])
    assert args.commands and args.records and args.seeds == [10, 11, 12, 13, 14, 15]
    assert table[0] == "analysis/fid_table.py" and "--freeze" in table


@pytest.mark.parametrize("words", [[], ["all", "out"]])
def test_the_first_gpu_says_what_its_parts_are(tmp_path, words):
    done, calls = calls_of(tmp_path, *words)
    assert (done.returncode, calls) == (2, [])
    assert "sample" in done.stdout + done.stderr and "study" in done.stdout + done.stderr
