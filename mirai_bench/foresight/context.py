"""What a source of features is, and what it is made from.

Letters: B batch, T tokens, Z width of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Batch
from mirai_bench.data.codes import Codes
from mirai_bench.model.transformer import ARModel


class Source(Protocol):
    """Provides the features that hidden states are aligned to. Encoders are sources too.

    A source is not an nn.Module, so its parameters are neither trained nor saved in checkpoints.
    """

    width: int
    """Width Z of the features."""

    @property
    def one_off_seconds(self) -> float | None:
        """Returns how long it took to make the source, once for all runs that use it.

        It is the training of an encoder that is trained here, or the computation of stored features.
        The trainer knows of a teacher that is a run. None is not known.
        """

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the features (B, T, Z) of a batch, without gradient.

        `labels` (B,) are those that the student was given, with the null class where the label was
        dropped. Feature s is that of state s or of cell s: `config.foresight.explicit` says which.
        """
        # `labels` matters to a teacher that is conditioned on the class, so encoders ignore it.


def needs_pixels(source: Source) -> bool:
    """Tells whether a source looks at `batch.pixels`, which are read during the step before.

    A source says so with the attribute `needs_pixels = True`. Without it the batch has no pixels.
    """
    return getattr(source, "needs_pixels", False)


@dataclass(frozen=True)
class SourceContext:
    """What a level and its source may be made from."""

    config: RunConfig
    ema: ARModel
    """The student's EMA, which follows the student during training."""
    codes: Codes  # the encoder that is trained here learns from them, too
    """The codes that the run is trained on, and the pixels behind them."""
    # A function, because most runs have no such weights to load.
    load_frozen: Callable[[], ARModel]
    """Loads the frozen teacher. Called only by a source that needs one."""
    device: torch.device
