import sys

import pytest

from mirai_bench.config import foresight, regularizer
from mirai_bench.data import tokenizers
from mirai_bench.data.images import datasets
from mirai_bench.diagnose import registry as diagnostics
from mirai_bench.evaluate import extractors
from mirai_bench.foresight import layout, level, source
from mirai_bench.foresight.encoders import build
from mirai_bench.model import regularizer_cost
from mirai_bench.regularizer import registry
from mirai_bench.utils import plugins

DICTIONARIES = (
    plugins._owners,
    level.LEVELS,
    layout.LAYOUTS,
    source.SOURCES,
    build.ENCODERS,
    tokenizers.TOKENIZERS,
    datasets.DATASETS,
    extractors.EXTRACTORS,
    diagnostics.DIAGNOSTICS,
    registry.REGULARIZERS,
    regularizer.PLUGGED,
    regularizer_cost.COSTS,
)


@pytest.fixture
def plugin(here, monkeypatch):
    """Writes a module into this test's folder, and forgets afterwards all that it has registered."""
    before = [dict(entries) for entries in DICTIONARIES]
    explicit = set(foresight.EXPLICIT_SOURCES)
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name, code):
        (here / f"{name}.py").write_text(f"from mirai_bench import register\n{code}")
        return name

    yield write
    for entries, then in zip(DICTIONARIES, before, strict=True):
        entries.clear()
        entries.update(then)
    foresight.EXPLICIT_SOURCES.clear()
    foresight.EXPLICIT_SOURCES.update(explicit)
    for name in set(sys.modules) - modules:
        if not name.startswith("mirai_bench"):
            del sys.modules[name]
