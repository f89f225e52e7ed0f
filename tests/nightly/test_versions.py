"""The project works on every installed Python, and with the oldest dependencies that it allows.

In each environment the fast tests of config, results and tracking pass, every module can be
imported, and a run trains. Another Python gets everything as `pip install` brings it, PyTorch with
its CUDA libraries (6 GB) included: about 5 minutes each, in a temporary folder that is deleted. For
the oldest versions, which take about 2 minutes, uv finds the lowest set that fits together; PyTorch
and what is built for it are those of the Python that runs the tests. Needs the package index.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.nightly.environments import clean_environment, install, new_environment, run
from tests.support.paths import ROOT

pytestmark = pytest.mark.nightly

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRA_TEST = PROJECT["optional-dependencies"]["test"]
TEST_TOOLS = [each for each in EXTRA_TEST if re.match("pytest>|hypothesis", each)]
FAST_TESTS = ("tests/config", "tests/results", "tests/tracking")
OF_THIS_PYTHON = ("torch", "torchvision", "torch-fidelity")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

IMPORTS = """
import importlib, sys
from pathlib import Path
from tests.support.architecture import module_files
sys.path.insert(0, "analysis")
names = [*module_files(Path.cwd()), *(path.stem for path in Path("analysis").glob("*.py"))]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def name_of(requirement: str) -> str:
    """Returns the name of the package that a requirement such as `ray[train,tune]>=2.59` means."""
    return re.match(r"[\w-]+", requirement).group()


def find_python(version: str) -> str | None:
    """Returns an installed Python of this version that can make environments, or None.

    Those of pyenv come first: its `python3.13` on the PATH may only say that it is not chosen.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    candidates.append(shutil.which(f"python{version}") or "")
    for python in filter(None, candidates):
        tried = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True)
        if tried.returncode == 0:
            return python
    return None


# ---- what is tried in an environment


def check_tests(python: Path, figures) -> None:
    words = [python, "-m", "pytest", *FAST_TESTS]
    said = run(words, ROOT, clean_environment(python.parent), 900).stdout
    figures(f"{', '.join(FAST_TESTS)}: {said.splitlines()[-1]}")


def check_imports(python: Path, figures) -> None:
    """Imports every module of the package and every script of analysis/."""
    environment = clean_environment(python.parent, PYTHONPATH=str(ROOT))
    said = run([python, "-c", IMPORTS], ROOT, environment)
    figures(f"{said.stdout.strip()} modules are imported")


def train(python: Path, folder: Path) -> str:
    """Trains a run of one epoch and evaluates it. Returns the folder of the run."""
    words = [python, "-m", "mirai_bench.train", "digits", "--set=foresight.level=internal"]
    words += ["--set=train.epochs=1", "--set=evaluation.at=[1]"]
    environment = clean_environment(python.parent, PYTHONPATH=str(ROOT))
    return run(words, folder, environment).stdout


def versions_in(python: Path) -> dict[str, str]:
    names = [name_of(requirement) for requirement in PROJECT["dependencies"]]
    said = run([python, "-c", VERSIONS, *names], python.parent, clean_environment(python.parent))
    return json.loads(said.stdout)


# ---- other Pythons


@pytest.fixture(scope="module", params=PYTHONS)
def other_python(request, tmp_path_factory):
    """The Python of an environment with the newest dependencies, for each other Python in turn."""
    if request.param == f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip("this is the Python that runs the tests")
    base = find_python(request.param)
    if base is None:
        pytest.skip(f"Python {request.param} is not installed")
    folder = tmp_path_factory.mktemp("python")
    python = new_environment(base, folder / "venv")
    install(python, [*PROJECT["dependencies"], *TEST_TOOLS])
    yield python
    shutil.rmtree(folder)


def test_another_python_passes_the_fast_tests(other_python, figures, stopwatch):
    versions = versions_in(other_python)
    figures(", ".join(f"{name} {version}" for name, version in versions.items()))
    check_tests(other_python, figures)


def test_another_python_imports_every_module(other_python, figures):
    check_imports(other_python, figures)


def test_another_python_trains(other_python, tmp_path):
    assert train(other_python, tmp_path).startswith("runs/")


# ---- the oldest dependencies


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """The Python of an environment with the oldest dependencies."""
    folder = tmp_path_factory.mktemp("oldest")
    install(new_environment(sys.executable, folder / "tools"), ["uv"])
    python = new_environment(sys.executable, folder / "venv")
    direct = [each for each in PROJECT["dependencies"] if name_of(each) not in OF_THIS_PYTHON]
    uv = folder / "tools" / "bin" / "uv"
    words = [uv, "pip", "install", "--quiet", "--no-cache", "--python", python]
    words += ["--resolution", "lowest-direct", "--only-binary", ":all:", *direct, *TEST_TOOLS]
    run(words, folder, clean_environment(python.parent), 900)
    # What the environment does not have is taken from the Python that runs the tests.
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    here = Path(pytest.__file__).parents[1]
    (site_packages / "of_this_python.pth").write_text(f"{here}\n")
    yield python
    shutil.rmtree(folder)


def test_the_oldest_dependencies_are_those_of_pyproject(oldest, figures):
    """A bound that no set of packages reaches would say nothing."""
    versions = versions_in(oldest)
    figures(", ".join(f"{name} {version}" for name, version in versions.items()))
    for requirement in PROJECT["dependencies"]:
        name = name_of(requirement)
        bound = requirement.partition(">=")[2]
        if bound and name not in OF_THIS_PYTHON:
            assert f"{versions[name]}.".startswith(f"{bound}."), requirement


def test_the_oldest_dependencies_pass_the_fast_tests(oldest, figures):
    check_tests(oldest, figures)


def test_the_oldest_dependencies_import_every_module(oldest, figures):
    check_imports(oldest, figures)


def test_a_run_trains_with_the_oldest_dependencies(oldest, tmp_path):
    assert train(oldest, tmp_path).startswith("runs/")
