"""Diagnostic ablation and benchmark suite for foresight training of autoregressive image generators.

What is exported is imported when it is first asked for, so that the foresight loss in another trainer
needs neither Ray nor MLflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirai_bench.api import register
    from mirai_bench.api.sweeps import FinishedSweep, read_results, run_sweep
    from mirai_bench.foresight.standalone import ForesightLoss
    from mirai_bench.utils.errors import UserError

__version__ = "0.2.0"

__all__ = ["FinishedSweep", "ForesightLoss", "UserError", "read_results", "register", "run_sweep"]

# The module of each name, which is an attribute of it, or the module itself.
_MODULES = {
    "FinishedSweep": "mirai_bench.api.sweeps",
    "ForesightLoss": "mirai_bench.foresight.standalone",
    "UserError": "mirai_bench.utils.errors",
    "read_results": "mirai_bench.api.sweeps",
    "register": "mirai_bench.api.register",
    "run_sweep": "mirai_bench.api.sweeps",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
