import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirai_bench.config.load import build_run, merge, read_profile
from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.log import configure_logging
from tests.support.paths import RECORDS
from tests.support.small_run import SMALL


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def messages() -> None:
    """What the code logs goes to stderr, as it does in a command."""
    configure_logging()


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs and caches for the whole session: what is made once (classifier, teacher)
    is made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def make_config(shared_runs: Path) -> Callable[..., RunConfig]:
    """The shipped digits profile, shrunk; keywords are sections laid over it."""

    def make(**sections: Any) -> RunConfig:
        fields = merge(
            merge(read_profile("digits"), SMALL), {"machine": {"runs": str(shared_runs), "device": "cpu"}}
        )
        return build_run(merge(fields, sections), "test")

    return make


@pytest.fixture(scope="session")
def trained_run(make_config: Callable[..., RunConfig]) -> Path:
    """A finished run of the shrunk digits profile."""
    from tests.support.small_run import train

    config = make_config()
    train(config, config.run_path)
    return config.run_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to give commands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def frozen():
    """The committed records of one sweep."""
    from mirai_bench.results.frozen import read_jsonl

    return read_jsonl([RECORDS])[0]


@pytest.fixture
def sweep_file(tmp_path, shared_runs):
    """Writes a small sweep file into this test's folder."""
    from tests.support.small_sweeps import sweep_writer

    return sweep_writer(tmp_path, shared_runs)


@pytest.fixture
def figures(record_property):
    """Keeps a line that was measured for the end of the session. `pytest -s` also shows it at once."""

    def add(line: str) -> None:
        record_property("figures", line)
        print(line, flush=True)

    return add


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints the figures of all tests, which pytest would show for failed tests only."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    for report in reports:
        lines = [value for name, value in getattr(report, "user_properties", ()) if name == "figures"]
        if lines and report.when == "call":
            terminalreporter.section(report.nodeid, sep="-")
            for line in lines:
                terminalreporter.line(line)
