"""Axis `foresight_source`: who provides the features. Each source is one entry of SOURCES.

The sources `ema` and `frozen` are causal models, so their feature s is their state s. The other
sources are bidirectional encoders, whose feature j is that of cell j.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.data.batch import Batch
from mirai_bench.foresight.context import Source, SourceContext, needs_pixels
from mirai_bench.foresight.encoders.build import RandomTokens, build_encoder
from mirai_bench.model.transformer import ARModel


class CausalStates:
    """Mirai-E: the states after block `teacher_layer` of a model of the student's shape.

    As in the official code they are not normalised. Only the first blocks of the model run.
    """

    one_off_seconds = 0.0

    def __init__(self, context: SourceContext, teacher: ARModel) -> None:
        foresight = context.config.foresight
        self.teacher = teacher
        self.share_label_drop = foresight.share_label_drop
        layer = foresight.teacher_layer or foresight.layer
        self.layer = resolve_layer(layer, teacher.config.depth)  # 1-based
        self.width = teacher.config.width

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the states (B, T, D). State s has consumed the class and the first s tokens."""
        # The official code gives the teacher the true class always. Then the student's null class,
        # which CFG subtracts, learns states of the class.
        own_labels = labels if self.share_label_drop else batch.labels
        return self.teacher.states(batch.tokens, own_labels, self.layer)


class Shuffled:
    """A control: correct features of the wrong image.

    Each image is given those of its neighbour in the batch, of which a process computes several images
    at a time (RunConfig.check_groups).
    """

    def __init__(self, inner: Source) -> None:
        self.inner = inner
        self.needs_pixels = needs_pixels(inner)
        self.width = inner.width
        self.one_off_seconds = inner.one_off_seconds

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the features (B, T, Z) of the inner source, shifted by one image."""
        return self.inner(batch, labels).roll(1, 0)


def ema(context: SourceContext) -> Source:
    """Builds Mirai-E's source: the student's own EMA."""
    return CausalStates(context, context.ema)


def frozen(context: SourceContext) -> Source:
    """Builds a source from the frozen weights of a finished run."""
    return CausalStates(context, context.load_frozen())


def shuffled(context: SourceContext) -> Source:
    """Builds the control that gives each image the features of another one."""
    return Shuffled(SOURCES[context.config.foresight.shuffled_of](context))


# "encoder" is Mirai-I. "random" and "shuffled" are controls: features that have learned nothing,
# and features that have nothing to do with the image.
SOURCES: dict[str, Callable[[SourceContext], Source]] = {
    "ema": ema,
    "frozen": frozen,
    "encoder": build_encoder,
    "random": RandomTokens,
    "shuffled": shuffled,
}
