"""What nightly tests share."""

import time

import pytest


@pytest.fixture
def stopwatch():
    """Returns a function that tells the seconds since the test began."""
    start = time.monotonic()
    return lambda: time.monotonic() - start
