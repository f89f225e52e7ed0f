"""Files that do not come with the code: downloaded weights and reference statistics; and those that do."""

from __future__ import annotations

import os
from pathlib import Path

# Sweep files, profiles and the paper's values lie beside the package in a checkout, and inside it in a wheel.
_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE.parent

# Fields of `machine` in a configuration that name folders of this machine. They mean nothing to a reader of a record.
LOCAL_FOLDERS = ("runs", "data", "codes", "assets")


def shipped(*parts: str) -> Path:
    """Returns the path of a file or folder that ships with the project, such as `shipped("sweeps")`."""
    in_wheel = _PACKAGE.joinpath("shipped", *parts)
    return in_wheel if in_wheel.exists() else _ROOT.joinpath(*parts)


def assets_folder(assets: Path | None) -> Path | None:
    """Returns `assets` (machine.assets of a config) or, if it is None, the folder that $MIRAI_BENCH_ASSETS names."""
    variable = os.environ.get("MIRAI_BENCH_ASSETS")
    return assets or (Path(variable) if variable else None)


def find_asset(assets: Path | None, *names: str) -> Path | None:
    """Returns the first of these files that the folder of assets has, or None."""
    folder = assets_folder(assets)
    if folder is None:
        return None
    return next((folder / name for name in names if (folder / name).is_file()), None)
