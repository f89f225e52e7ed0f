"""A built wheel holds what the package looks up: profiles, sweep files, the paper's values, weights.

The wheel is unpacked without its dependencies, and imported from an empty folder. The nightly level
installs it into an environment of its own, and trains with it.
"""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from mirai_bench.__main__ import SCRIPTS
from mirai_bench.config.load import SWEEPS, load_run
from mirai_bench.config.sweep_file import load_sweep
from tests.nightly.environments import build_wheel, clean_environment, run
from tests.support.paths import repository_files

pytestmark = pytest.mark.slow  # pip builds a wheel in an environment that it makes for it

PROFILES = sorted(path.stem for path in (SWEEPS / "profiles").glob("*.yaml"))
SWEEP_FILES = sorted(path.name for path in SWEEPS.glob("*.yaml"))

LOOK = """
import json, sys
import mirai_bench
from mirai_bench.config.load import load_run
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.results.paper import read_paper
from mirai_bench.utils.assets import shipped
profiles, sweeps = json.loads(sys.argv[1])
print(json.dumps({
    "package": mirai_bench.__file__,
    "sweeps": str(shipped("sweeps")),
    "paper": str(shipped("reports", "data", "paper_values.csv")),
    "rows of the paper": len(read_paper("injection_level", "B")),
    "fingerprints": {name: load_run(name).fingerprint() for name in profiles},
    "cells": {
        name: [cell.fingerprint for cell in load_sweep(shipped("sweeps", name)).cells]
        for name in sweeps
    },
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel):
    """The folder that holds what the wheel installs, and nothing else."""
    folder = wheel.parent / "unpacked"
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        folder,
        wheel,
    ]
    run(words, wheel.parent, clean_environment(Path(sys.executable).parent))
    return folder


@pytest.fixture
def python(unpacked, here):
    """Runs Python in an empty folder, where `mirai_bench` is the wheel's. Returns what it printed."""
    environment = clean_environment(Path(sys.executable).parent, PYTHONPATH=str(unpacked))

    def in_the_folder(*words: str) -> str:
        return run([sys.executable, *words], here, environment).stdout

    return in_the_folder


def test_it_holds_the_package_the_sweeps_and_what_tables_read_and_nothing_else(wheel):
    files = set(repository_files())
    expected = {name for name in files if name.startswith("mirai_bench/")}
    expected |= {f"mirai_bench/shipped/{name}" for name in files if name.startswith(("sweeps/", "analysis/"))}
    expected |= {f"mirai_bench/shipped/reports/{name}" for name in ("claims.yaml", "fd_targets.yaml")}
    shipped_data = ("controls.json", "noise_cifar10_cpu.jsonl", "noise_digits.jsonl")
    shipped_data += ("paper_values.csv", "training_noise.csv")
    expected |= {f"mirai_bench/shipped/reports/data/{name}" for name in shipped_data}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_wheels_package_finds_its_own_files(python, unpacked):
    found = json.loads(python("-c", LOOK, json.dumps([PROFILES, SWEEP_FILES])))
    package = unpacked / "mirai_bench"
    assert Path(found["package"]) == package / "__init__.py", "not the checkout's package"
    assert Path(found["sweeps"]) == package / "shipped" / "sweeps"
    assert Path(found["paper"]) == package / "shipped" / "reports" / "data" / "paper_values.csv"
    assert found["rows of the paper"] > 0
    assert found["fingerprints"] == {name: load_run(name).fingerprint() for name in PROFILES}
    for name in SWEEP_FILES:
        cells = load_sweep(SWEEPS / name).cells
        assert found["cells"][name] == [cell.fingerprint for cell in cells]


def test_a_shipped_sweep_is_planned_from_an_empty_folder(python, unpacked, here):
    sweep = unpacked / "mirai_bench" / "shipped" / "sweeps" / "injection_level.yaml"
    said = python("-m", "mirai_bench.sweep", str(sweep), "--dry-run")
    assert "15 cells, 15 to run" in said
    assert list(here.iterdir()) == [], "a dry run writes nothing"


def test_mirai_bench_is_a_command_of_the_wheel(unpacked, python):
    assert (unpacked / "bin" / "mirai-bench").is_file()
    assert "mirai-bench COMMAND" in python(str(unpacked / "bin" / "mirai-bench"), "--help")
    assert python(str(unpacked / "bin" / "mirai-bench"), "--version").startswith("mirai-bench 0.")


def test_scripts_of_the_analysis_are_commands_of_the_wheel(unpacked, python):
    command = str(unpacked / "bin" / "mirai-bench")
    for name in SCRIPTS:
        assert "usage:" in python(command, name, "--help"), name
    assert "internal-2d" in python(command, "list", "injection_level")
