"""The figures that nightly tests measure, printed at the end of the session."""

import time

import pytest

FIGURES = "figures"


@pytest.fixture
def figures(record_property):
    """Keeps a line for the end of the session. It is also printed at once, for `pytest -s`."""

    def add(line: str) -> None:
        record_property(FIGURES, line)
        print(line, flush=True)

    return add


@pytest.fixture
def stopwatch():
    """Returns a function that tells the seconds since the test began."""
    start = time.monotonic()
    return lambda: time.monotonic() - start


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints the figures of all tests, which pytest would show for failed tests only."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    for report in reports:
        lines = [value for name, value in getattr(report, "user_properties", ()) if name == FIGURES]
        if lines and report.when == "call":
            terminalreporter.section(report.nodeid, sep="-")
            for line in lines:
                terminalreporter.line(line)
