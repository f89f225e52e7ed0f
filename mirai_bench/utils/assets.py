"""Where files are found that are not code: shipped with the project, or downloaded by a user."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# Fields of a configuration, in its section `machine`, that name folders. They mean nothing to
# whoever reads a record on another machine.
LOCAL_FOLDERS = ("runs", "data", "codes", "assets")


def shipped(*parts: str) -> Path:
    """Returns the path of what ships with the project, for instance of `shipped("sweeps")`."""
    # A wheel has them inside the package, and a checkout next to it.
    in_wheel = _PACKAGE.joinpath("shipped", *parts)
    return in_wheel if in_wheel.exists() else _PACKAGE.parent.joinpath(*parts)


def assets_folder(assets: Path | None) -> Path | None:
    """Returns `assets` (machine.assets of a config), by default what $MIRAI_BENCH_ASSETS names."""
    variable = os.environ.get("MIRAI_BENCH_ASSETS")  # an empty one counts as none
    return assets or (Path(variable) if variable else None)


def find_asset(assets: Path | None, *names: str) -> Path | None:
    """Returns the first of these files that the folder of assets has, or None."""
    folder = assets_folder(assets)
    if folder is None:
        return None
    return next((folder / name for name in names if (folder / name).is_file()), None)
