"""Plug-ins: each function adds an entry to one dictionary of the project, under a name of its own.

    from mirai_bench import register

    @register.layout("column")
    def column(height, width, k): ...

A name that is built in is refused, so that no run with a plug-in can be taken for one without. What the
entries of a dictionary are is said in its own module, which is named with each function. The rooms of the
dictionaries are imported when something is registered: before that, this module needs none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mirai_bench.config.foresight import EXPLICIT_SOURCES
from mirai_bench.config.regularizer import PLUGGED, Rival
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.plugins import enter

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mirai_bench.config.run_config import RunConfig
    from mirai_bench.data.images.datasets import Split
    from mirai_bench.data.tokenizers import Tokenizer
    from mirai_bench.diagnose.diagnostic import Diagnostic
    from mirai_bench.evaluate.extractors import Entry
    from mirai_bench.foresight.context import Source, SourceContext
    from mirai_bench.foresight.layout import Layout
    from mirai_bench.foresight.level import Level
    from mirai_bench.model.regularizer_cost import RegularizerCost
    from mirai_bench.regularizer.regularizer import Regularizer

    Images = tuple[np.ndarray, np.ndarray, tuple[str, ...]]

F = TypeVar("F", bound=Callable[..., Any])


def _adder(kind: str, name: str, entries: MutableMapping[str, Any]) -> Callable[[F], F]:
    """Returns a decorator that makes a function or class the entry of this name."""
    enter(kind, name, _caller(), entries)

    def add(entry: F) -> F:
        entries[name] = entry
        return entry

    return add


def _caller() -> str:
    """Returns the name of the module that called a function of this one."""
    frame = sys._getframe(1)
    while frame.f_globals["__name__"] == __name__:
        assert frame.f_back is not None, "somebody has called this module"
        frame = frame.f_back
    return frame.f_globals["__name__"]


# ---- foresight


def level(name: str) -> Callable[[type[Level]], type[Level]]:
    """Registers a level of foresight, a subclass of `Level` that is made from a SourceContext.

    All fields of the section `foresight` belong to the fingerprint of its runs: it may read any of them
    (mirai_bench/foresight/level.py, `LEVELS`).
    """
    from mirai_bench.foresight.level import LEVELS

    return _adder("level", name, LEVELS)


def layout(
    name: str,
) -> Callable[[Callable[[int, int, int], Layout]], Callable[[int, int, int], Layout]]:
    """Registers a layout, a function from height, width and K to a table of cells.

    Head 0 is the state's own cell (mirai_bench/foresight/layout.py, `LAYOUTS`).
    """
    from mirai_bench.foresight.layout import LAYOUTS

    return _adder("layout", name, LAYOUTS)


def source(
    name: str, *, explicit: bool = False
) -> Callable[[Callable[[SourceContext], Source]], Callable[[SourceContext], Source]]:
    """Registers a source of features, which is made from a SourceContext.

    `explicit` says that it is a causal model, whose feature s is its state s, and not that of cell s
    (mirai_bench/foresight/source.py, `SOURCES`).
    """
    from mirai_bench.foresight.source import SOURCES

    add = _adder("source", name, SOURCES)
    if explicit:
        EXPLICIT_SOURCES.add(name)
    return add


def encoder(
    name: str,
) -> Callable[[Callable[[SourceContext], Source]], Callable[[SourceContext], Source]]:
    """Registers a frozen bidirectional encoder for source `encoder`, under `foresight.encoder.name`.

    It is made as a source is (mirai_bench/foresight/encoders/build.py, `ENCODERS`).
    """
    from mirai_bench.foresight.encoders.build import ENCODERS

    return _adder("encoder", name, ENCODERS)


def regularizer(
    name: str, section: type[Rival], cost: Callable[[RunConfig, Any], RegularizerCost]
) -> Callable[[type[Regularizer]], type[Regularizer]]:
    """Registers a regularizer, a subclass of `Regularizer` that is made from a SourceContext and a section.

    `section` are its fields in a file, a subclass of `Rival` whose `name` is this name; `cost` says what it
    adds to a step (mirai_bench/regularizer/registry.py, `REGULARIZERS`).
    """
    from mirai_bench.model.regularizer_cost import COSTS
    from mirai_bench.regularizer.registry import REGULARIZERS

    if not issubclass(section, Rival):
        raise UserError(f"regularizer {name!r}: its section is {section}, which is no subclass of Rival")
    add = _adder("regularizer", name, REGULARIZERS)
    COSTS[name] = cost
    PLUGGED[name] = section
    return add


# ---- data


def dataset(
    name: str,
) -> Callable[[Callable[[RunConfig, Split], Images]], Callable[[RunConfig, Split], Images]]:
    """Registers a data set, a function from a configuration and a split (`train`, `heldout`) to images.

    It returns images uint8 (N, h, w, 3), their classes (N,), and the names of the classes. They are encoded
    whenever they are used, so that they should be few (mirai_bench/data/images/datasets.py, `DATASETS`).
    """
    from mirai_bench.data.images.datasets import DATASETS, in_memory

    enter("dataset", name, _caller(), DATASETS)

    def add(read: Callable[[RunConfig, Split], Images]) -> Callable[[RunConfig, Split], Images]:
        DATASETS[name] = lambda config, split: in_memory(name, *read(config, split))
        return read

    return add


def tokenizer(
    name: str, *, weights: Callable[[RunConfig], Path | None] = lambda config: config.tokenizer.weights
) -> Callable[[Callable[..., Tokenizer]], Callable[..., Tokenizer]]:
    """Registers a tokenizer, which is made from a configuration and a device.

    `weights` returns its weight file, whose hash and that of the plug-in are its identity
    (mirai_bench/data/tokenizers/__init__.py, `TOKENIZERS`).
    """
    from mirai_bench.data.tokenizers import TOKENIZERS, PluggedTokenizer

    enter("tokenizer", name, _caller(), TOKENIZERS)

    def add(load: Callable[[RunConfig, torch.device], Tokenizer]) -> Callable[..., Tokenizer]:
        TOKENIZERS[name] = PluggedTokenizer(name, load, weights)
        return load

    return add


# ---- what is measured


def extractor(name: str, entry: Entry) -> None:
    """Registers a feature extractor. Its entry names the network, its weights, and its distances.

    The name of the Fréchet distance begins with FD-, that of the kernel distance with KID-
    (mirai_bench/evaluate/extractors.py, `EXTRACTORS`).
    """
    from mirai_bench.evaluate.extractors import EXTRACTORS

    enter("extractor", name, _caller(), EXTRACTORS)
    EXTRACTORS[name] = entry


def diagnostic(name: str, entry: Diagnostic) -> None:
    """Registers a diagnostic: a question, and the function that answers it for one checkpoint.

    (mirai_bench/diagnose/registry.py, `DIAGNOSTICS`)
    """
    from mirai_bench.diagnose.registry import DIAGNOSTICS

    enter("diagnostic", name, _caller(), DIAGNOSTICS)
    DIAGNOSTICS[name] = entry
