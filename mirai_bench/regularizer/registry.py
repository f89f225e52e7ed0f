"""Axis `regularizer`: the rivals of foresight. Each is one entry of REGULARIZERS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mirai_bench.foresight.context import SourceContext
from mirai_bench.regularizer.dispersive import Dispersive
from mirai_bench.regularizer.iar import Iar
from mirai_bench.regularizer.mtar import Mtar
from mirai_bench.regularizer.npp import Npp
from mirai_bench.regularizer.rear import Rear
from mirai_bench.regularizer.regularizer import Regularizer
from mirai_bench.regularizer.st_ar import StAr

# The heads are seeded apart from the model and from foresight's heads.
HEAD_SEED_OFFSET = 2**32

# Each is built from the context of the run and from its own section of the configuration.
REGULARIZERS: dict[str, Callable[[SourceContext, Any], Regularizer]] = {
    "none": lambda context, config: Regularizer(),
    "dispersive": Dispersive,
    "iar": Iar,
    "rear": Rear,
    "mtar": Mtar,
    "st-ar": StAr,
    "npp": Npp,
}


def build_regularizer(context: SourceContext) -> Regularizer:
    """Returns the run's regularizer on its device, with its heads initialised."""
    config = context.config
    regularizer = REGULARIZERS[config.regularizer.name](context, config.regularizer)
    # On the CPU, before the heads move, so that a GPU starts from the same numbers.
    generator = torch.Generator().manual_seed(config.seed_of("init") + HEAD_SEED_OFFSET)
    regularizer.init_weights(generator)
    return regularizer.to(context.device)
