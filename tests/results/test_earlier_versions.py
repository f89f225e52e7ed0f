"""Run folders of version 0.1 are read: two runs that it trained, of which the weights are left out."""

import shutil

import pytest

from mirai_bench.config.load import load_run
from mirai_bench.results.frozen import freeze, read_jsonl
from mirai_bench.results.reading import read_journals
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import markdown
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.paths import FIXTURES

BASELINE, MIRAI_E = "5b134eaddd4c", "90d7ef5d7a48"  # as 0.1 computed the fingerprints


@pytest.fixture
def runs(tmp_path):
    """Returns a copy of the folder."""
    return shutil.copytree(FIXTURES / "runs_of_0.1", tmp_path / "runs")


def test_the_sweep_of_an_earlier_version_is_a_table(runs, tmp_path):
    (results,) = read_journals(runs)
    assert results.arms == ["baseline", "internal-2d"]
    last = results.frame[results.frame["epoch"] == 2].set_index("arm")
    assert last["FD-digits"].round(4).tolist() == [13.2052, 13.9176]
    text = markdown(build_table(results))
    assert "13.21" in text and "13.92" in text
    freeze(results, tmp_path / "frozen.jsonl")
    (frozen,) = read_jsonl([tmp_path / "frozen.jsonl"])
    assert frozen.frame.equals(results.frame)


@pytest.mark.parametrize("name", [BASELINE, MIRAI_E])
def test_the_config_of_an_earlier_version_is_read_and_is_another_run(runs, name):
    folder = RunFolder(runs / name)
    config = load_run(folder.config_file)
    assert folder.state == "done" and config.train.epochs == 2
    assert config.foresight.level == ("none" if name == BASELINE else "internal")
    # It would be trained anew under its new name, so that no table mixes runs of both versions.
    assert config.fingerprint() != name
