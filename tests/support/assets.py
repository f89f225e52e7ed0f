"""Files that are not in the repository: weights and data sets in the folder that
$MIRAI_BENCH_ASSETS names."""

import os
from pathlib import Path

import pytest


def asset(*names: str) -> Path:
    """The first of these files that is there; skips the test where none is."""
    folder = Path(os.environ.get("MIRAI_BENCH_ASSETS", "."))
    found = [folder / name for name in names if (folder / name).is_file()]
    if "MIRAI_BENCH_ASSETS" not in os.environ or not found:
        pytest.skip(f"needs {' or '.join(names)} in $MIRAI_BENCH_ASSETS")
    return found[0]
