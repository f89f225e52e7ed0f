"""The loss of a batch, which is the part of a step that is compiled."""

from __future__ import annotations

from torch import Tensor, nn

from mirai_bench.data.batch import Batch
from mirai_bench.foresight import Level
from mirai_bench.model.transformer import ARModel, States
from mirai_bench.regularizer.regularizer import Prepared, Regularizer

Losses = tuple[Tensor, Tensor, Tensor, Tensor]


class Objective(nn.Module):
    """The loss L = NTP + λ · foresight (arXiv 2601.14671) + λ' · regularizer of one batch.

    Its parameters are what is trained: those of the generator and of the heads of both terms.
    """

    def __init__(self, model: ARModel, level: Level | None, regularizer: Regularizer | None = None) -> None:
        super().__init__()
        self.model = model
        self.foresight = level
        self.regularizer = regularizer or Regularizer()

    def forward(
        self,
        batch: Batch,
        labels: Tensor,
        weight: Tensor | None,
        extra: tuple[Tensor, ...] = (),
        penalty: Tensor | None = None,
    ) -> Losses:
        """Returns (loss, NTP in nats per token, foresight and regularizer before λ), four scalars.

        `weight` is the λ of foresight, `penalty` that of the regularizer, which prepared `extra`.
        With None a term is off: its loss is zero, and its heads see no gradient and no decay.
        """
        level = None if weight is None else self.foresight
        prepared = Prepared(batch, extra)
        # 1. The states, as the regularizer has the model read the batch.
        taps = () if penalty is None else self.regularizer.taps
        if level is not None and level.tap is not None:
            taps = (*taps, level.tap)
        reading = self.regularizer.read(self.model, prepared, labels, taps)
        # 2. The losses.
        loss, ntp, regularizer = self.regularizer(self.model, reading, prepared, labels, penalty)
        if level is None:
            return loss, ntp, ntp.new_zeros(()), regularizer
        hidden = None if level.tap is None else reading.streams[level.tap]
        foresight = level(States(hidden, reading.final), batch, labels)
        return loss + weight * foresight, ntp, foresight, regularizer
