"""A sweep under `--set` options is another sweep: it has its own name, and says what was set."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mirai_bench.utils.hashing import digest

IN_SEVERAL_SECTIONS = ("name",)
MOST_OF_NAME = 64  # characters of the name of a sweep


def varying(settings: Sequence[str]) -> tuple[str, ...]:
    """Returns the `--set` options that make other runs, in order. Those of `machine` make the same."""
    last = dict(setting.split("=", 1) for setting in settings)  # of a field that is set twice
    return tuple(f"{path}={last[path]}" for path in sorted(last) if not path.startswith("machine."))


def _short(path: str) -> str:
    """Returns a field without its section, unless several sections have one of this name."""
    field = path.partition(".")[2]
    return path if field in IN_SEVERAL_SECTIONS else field


def varied_name(axis: str, settings: Sequence[str]) -> str:
    """Returns the name of a sweep under such options, so that it takes the place of no other one."""
    if not settings:
        return axis
    # `train.epochs=2` becomes `epochs-2`, and `foresight.encoder.epochs=2` `encoder.epochs-2`: the name is
    # that of files and of MLflow's tags, too.
    fields = [setting.partition("=") for setting in settings]
    words = [f"{_short(path)}-{value}" for path, _, value in fields]
    name = "+".join([axis, *(re.sub(r"[^A-Za-z0-9_.]+", "-", word).strip("-") for word in words)])
    return name if len(name) <= MOST_OF_NAME else f"{axis[:50]}+{digest(list(settings))[:6]}"
