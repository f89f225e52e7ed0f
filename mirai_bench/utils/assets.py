"""TODO: utils.assets."""

from __future__ import annotations

import os
from pathlib import Path

from mirai_bench.config.run_config import RunConfig


def assets_folder(config: RunConfig) -> Path | None:
    """machine.assets, else $MIRAI_BENCH_ASSETS: where downloaded weights and reference files lie."""
    variable = os.environ.get("MIRAI_BENCH_ASSETS")
    return config.machine.assets or (Path(variable) if variable else None)


def find_asset(config: RunConfig, *names: str) -> Path | None:
    folder = assets_folder(config)
    found = [folder / name for name in names if (folder / name).is_file()] if folder is not None else []
    return found[0] if found else None
