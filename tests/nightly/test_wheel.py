"""A wheel, installed with its dependencies into a fresh environment, does the main job.

Takes about 6 minutes, most of them to install PyTorch with its CUDA libraries (6 GB in a temporary
folder, which is deleted). Needs the package index.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.nightly.environments import build_wheel, clean_environment, install, new_environment, run
from tests.support.paths import ROOT

pytestmark = pytest.mark.nightly

ARMS = ("baseline", "internal-2d")
WHERE = """
import json
import mirai_bench
from mirai_bench.config.load import find_profile, load_run
from mirai_bench.utils.assets import shipped
print(json.dumps({
    "package": mirai_bench.__file__,
    "sweep": str(shipped("sweeps", "injection_level.yaml")),
    "profile": str(find_profile("digits")),
    "fingerprint": load_run("digits").fingerprint(),
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment into which `pip install WHEEL` has installed everything."""
    folder = tmp_path_factory.mktemp("wheel")
    python = new_environment(sys.executable, folder / "venv")
    install(python, [build_wheel(folder)])
    yield python
    shutil.rmtree(folder)


@pytest.fixture
def give(python, tmp_path):
    """Gives a command in an empty folder, without a way to the checkout. Returns what it printed."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = clean_environment(python.parent)

    def in_the_folder(*words: str | Path, timeout: float = 120) -> str:
        program = shutil.which(words[0], path=environment["PATH"])
        return run([program, *words[1:]], folder, environment, timeout).stdout

    return in_the_folder


def found_by(give) -> dict[str, str]:
    return json.loads(give("python", "-c", WHERE))


def test_it_finds_its_own_files_and_nothing_of_the_checkout(give, python):
    found = found_by(give)
    site = python.parents[1]
    for name in ("package", "sweep", "profile"):
        path = Path(found[name])
        assert path.is_file()
        assert path.is_relative_to(site), f"{name} is {path}"
        assert not path.is_relative_to(ROOT)


def test_the_profile_digits_is_the_run_that_the_checkout_means(give):
    from mirai_bench.config.load import load_run

    assert found_by(give)["fingerprint"] == load_run("digits").fingerprint()


def test_mirai_bench_lists_its_commands(give):
    from mirai_bench.__main__ import ALIASES, COMMANDS, SCRIPTS

    said = give("mirai-bench", "--help")
    short = {module: name for name, module in ALIASES.items()}
    names = [*(short.get(module, module) for module in COMMANDS), *SCRIPTS]
    assert [name for name in names if f"\n  {name} " not in said] == []


def test_the_main_job_with_one_seed_and_two_arms(give, python, figures, stopwatch):
    """Trains and evaluates two cells of the shipped sweep, and prints the table."""
    sweep = found_by(give)["sweep"]
    table = give(
        "python", "-m", "mirai_bench.sweep", sweep, "--seeds", "0", "--only", *ARMS, timeout=1200
    )  # fmt: skip
    for arm in ARMS:
        assert f"\n| {arm} | 1 |" in table
    assert "paper: FID" in table, "the paper's values come with the wheel"
    state = give("mirai-bench", "sweep", "status", sweep, "--seeds", "0", "--only", *ARMS)
    assert state.endswith("2 done\n")
    again = give("mirai-bench", "sweep", sweep, "--seeds", "0", "--only", *ARMS)
    assert again == table, "everything is found done"
    figures(f"{len(ARMS)} cells of the main job: {stopwatch():.0f} s")
    figures(table)
