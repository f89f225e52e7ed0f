"""The project works on every installed Python, and with the oldest dependencies that it allows.

In each environment the fast tests of config, results and tracking pass, every module can be imported,
and a small sweep trains and prints its table. uv installs the environments: the newest packages for
another Python, and for this one the oldest that pyproject.toml allows and that fit together. Takes
about 5 minutes each. PyTorch brings its CUDA libraries along (6 GB in a temporary folder, which is
deleted). Needs the package index.
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

OLDEST = "oldest dependencies"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRA_TEST = PROJECT["optional-dependencies"]["test"]
TEST_TOOLS = [each for each in EXTRA_TEST if re.match("pytest>|hypothesis", each)]
FAST_TESTS = ("tests/config", "tests/results", "tests/tracking")
ARMS = ("baseline", "internal-2d")

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


def base_of(name: str) -> str | None:
    """Returns the Python to make an environment from. Skips the test if there is none."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if name == OLDEST:
        return sys.executable
    if name == here:
        pytest.skip("this is the Python that runs the tests")
    python = find_python(name)
    if python is None:
        pytest.skip(f"Python {name} is not installed")
    return python


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """The program uv, which can also choose the oldest versions."""
    folder = tmp_path_factory.mktemp("uv")
    install(new_environment(sys.executable, folder / "tools"), ["uv"])
    return folder / "tools" / "bin" / "uv"


@pytest.fixture(scope="module", params=[OLDEST, *PYTHONS])
def python(request, uv, tmp_path_factory):
    """The Python of an environment with the dependencies of the project, for one environment in turn."""
    base = base_of(request.param)
    folder = tmp_path_factory.mktemp("environment")
    python = new_environment(base, folder / "venv")
    words = [uv, "pip", "install", "--quiet", "--no-cache", "--only-binary", ":all:", "--python", python]
    if request.param == OLDEST:
        words += ["--resolution", "lowest-direct"]
    run([*words, *PROJECT["dependencies"], *TEST_TOOLS], folder, clean_environment(uv.parent), 1800)
    yield python
    shutil.rmtree(folder)


def names_and_bounds() -> dict[str, str]:
    """Returns the oldest version that pyproject.toml allows of each dependency."""
    bounds = {}
    for requirement in PROJECT["dependencies"]:
        name, _, bound = requirement.partition(">=")
        bounds[name.partition("[")[0]] = bound
    return bounds


def test_the_environment_has_the_versions_that_it_shall_have(python, request, figures):
    """The oldest versions are really those that pyproject.toml allows: no dependency needs a newer one."""
    bounds = names_and_bounds()
    words = [python, "-c", VERSIONS, *bounds]
    versions = json.loads(run(words, python.parent, clean_environment(python.parent)).stdout)
    figures(", ".join(f"{name} {version}" for name, version in versions.items()))
    if OLDEST in request.node.callspec.id:
        for name, bound in bounds.items():
            assert f"{versions[name]}.".startswith(f"{bound}."), name


def test_fast_tests_pass(python, figures):
    words = [python, "-m", "pytest", *FAST_TESTS]
    said = run(words, ROOT, clean_environment(python.parent), 900).stdout
    figures(said.splitlines()[-1])


def test_every_module_is_imported(python, figures):
    """Imports the modules of the package and the scripts of analysis/."""
    environment = clean_environment(python.parent, PYTHONPATH=str(ROOT))
    number = run([python, "-c", IMPORTS], ROOT, environment).stdout.strip()
    figures(f"{number} modules are imported")


def test_a_small_sweep_trains(python, tmp_path, figures, stopwatch):
    """Ray trains two cells for an epoch each, MLflow gets them, and the table is printed."""
    words = [python, "-m", "mirai_bench.sweep", ROOT / "sweeps" / "injection_level.yaml", "--seeds=0"]
    words += ["--only", *ARMS, "--set=train.epochs=1", "--set=evaluation.at=[1]"]
    environment = clean_environment(python.parent, PYTHONPATH=str(ROOT))
    said = run(words, tmp_path, environment, 900)
    for arm in ARMS:
        assert f"\n| {arm} | 1 |" in said.stdout
    assert "warning: " not in said.stderr, "MLflow took everything"
    figures(f"a sweep of {len(ARMS)} cells: {stopwatch():.0f} s")
