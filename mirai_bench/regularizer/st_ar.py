"""ST-AR: masked attention, an EMA teacher, and a contrast of images.

Letters: B batch, T tokens, D width, K positions, g images that are contrasted with each other.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.projector import ProjectorConfig
from mirai_bench.config.regularizer import StArConfig
from mirai_bench.data.batch import Batch
from mirai_bench.foresight.context import SourceContext
from mirai_bench.foresight.projector import Projector
from mirai_bench.model.transformer import ARModel
from mirai_bench.regularizer.regularizer import Moment, Prepared, Reading, Regularizer
from mirai_bench.utils.device import send


class Teacher:
    """The run's EMA. It is no nn.Module, so that its weights are neither trained nor saved twice."""

    def __init__(self, ema: ARModel) -> None:
        self.ema = ema

    @torch.no_grad()
    def __call__(self, batch: Batch, labels: Tensor, taps: tuple[int, ...]) -> Reading:
        """Returns the states of the EMA, which sees all tokens and drops none."""
        return Reading(*self.ema.run(self.ema.embed(batch.tokens[:, :-1], labels), taps=taps))


class StAr(Regularizer):
    """ST-AR (NeurIPS 2025). Its three losses have a weight each, and 0 leaves one out."""

    def __init__(self, context: SourceContext, config: StArConfig) -> None:
        super().__init__()
        run = context.config
        self.config = config
        self.weight = config.weight
        self.codes = context.codes
        self.teacher = Teacher(context.ema)
        self.group = config.group_of(run.train.batch_size)
        if self.group is None:
            return
        self.taps = (resolve_layer(config.layer, run.model.depth),)
        width = run.model.width
        mlp = ProjectorConfig(layers=3, hidden=run.regularizer_hidden)
        self.projector = Projector(mlp, 1, width, width)

    def init_weights(self, generator: torch.Generator) -> None:
        """Initialises the projector."""
        if self.group is not None:
            self.projector.init_weights(generator)

    # ---- what a step trains on

    def prepare(self, batch: Batch, moment: Moment) -> Prepared:
        """Returns the batch with its second views, and what is drawn for it.

        It is which tokens attention sees (B, T) bool, and two different positions (B, K) of each image
        K times.
        """
        config = self.config
        if config.mask_ratio == 0 and self.weight == 0:
            return Prepared(batch)
        images, tokens = batch.tokens.shape
        draws = moment.uniform(images, 1 + tokens + 2 * config.positions)
        of_view, of_mask, of_anchor, of_other = np.split(
            draws, [1, 1 + tokens, 1 + tokens + config.positions], axis=1
        )
        if config.pairs_views:
            batch = self._with_second_views(batch, of_view[:, 0])
        seen = of_mask >= config.mask_ratio
        seen[:, 0] = True  # the class token: a state that sees nothing would not be a number
        anchor = (of_anchor * tokens).astype(np.int64)
        other = (anchor + 1 + (of_other * (tokens - 1)).astype(np.int64)) % tokens
        device = batch.tokens.device
        return Prepared(batch, (send(seen, device), send(anchor, device), send(other, device)))

    def _with_second_views(self, batch: Batch, draws: np.ndarray) -> Batch:
        """Returns a batch of the same size. In each group the second half are other views of the first.

        `draws` (B,) in [0, 1) choose the views.
        """
        halves = [field.unflatten(0, (-1, 2, self._set_size)) for field in (batch.index, batch.view)]
        of_draws = send(draws, batch.index.device).unflatten(0, (-1, 2, self._set_size))
        index, view = (half[:, 0] for half in halves)  # (B/g, g/2)
        others = max(1, self.codes.num_views - 1)
        ahead = 1 + (of_draws[:, 0] * others).long()
        second = (view + ahead) % self.codes.num_views
        index = torch.stack([index, index], 1).flatten()  # (B,)
        view = torch.stack([view, second], 1).flatten()
        return Batch(self.codes.tokens_of(index, view), self.codes.labels[index], index, view)

    @property
    def _set_size(self) -> int:
        """Returns how many different images are contrasted with each other."""
        assert self.group is not None, "images are contrasted"
        return self.group // 2 if self.config.pairs_views else self.group

    # ---- the student

    def read(self, model: ARModel, prepared: Prepared, labels: Tensor, taps: tuple[int, ...]) -> Reading:
        """Returns the states of a student whose attention does not see all tokens."""
        if self.config.mask_ratio == 0 or not prepared.extra:
            return super().read(model, prepared, labels, taps)
        seen = prepared.extra[0]
        causal = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool, device=seen.device).tril()
        mask = causal & seen[:, None, None, :]  # (B, 1, T, T)
        x = model.embed(prepared.batch.tokens[:, :-1], labels)
        return Reading(*model.run(x, taps=taps, mask=mask, dropout=True))

    # ---- the losses

    def loss(self, model: ARModel, reading: Reading, prepared: Prepared, labels: Tensor) -> Tensor:
        """Returns α · L_MIM + the weighted contrasts."""
        config = self.config
        teacher = self.teacher(prepared.batch, labels, self.taps)
        loss = config.mim * cosine_distance(reading.final, teacher.final)
        if self.group is None:
            return loss
        _, anchor, other = prepared.extra
        # (B, K, D): the student's states at the anchors, projected.
        student = self.projector(at(reading.streams[self.taps[0]], anchor))[0]
        states = teacher.streams[self.taps[0]]  # (B, T, D)
        if config.step > 0:
            loss = loss + config.step * self._contrast(student, at(states, other))
        if config.pairs_views:
            # The other view of an image is half a group away.
            swapped = states.unflatten(0, (-1, 2, self._set_size)).flip(1).flatten(0, 2)
            loss = loss + config.view * self._contrast(student, at(swapped, anchor))
        return loss

    def _contrast(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the InfoNCE loss of states (B, K, D): each is to be found among those of other images."""
        return info_nce(
            student.unflatten(0, (-1, self._set_size)),
            teacher.unflatten(0, (-1, self._set_size)),
            self.config.temperature,
        )


def at(states: Tensor, positions: Tensor) -> Tensor:
    """Returns the states (B, K, D) at positions (B, K) of states (B, T, D)."""
    return states.gather(1, positions[:, :, None].expand(-1, -1, states.shape[-1]))


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean of 1 - cosine of states (B, T, D)."""
    with torch.autocast(student.device.type, enabled=False):
        return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def info_nce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the mean over sets, images and positions of -log softmax(cosine / τ) of the right image.

    student and teacher are (sets, g, K, D). For each position of its own an image is compared with all g
    images of its set.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours = F.normalize(student.float(), dim=-1).transpose(1, 2)  # (sets, K, g, D)
        theirs = F.normalize(teacher.float(), dim=-1).transpose(1, 2)
        logits = ours @ theirs.transpose(2, 3) / temperature  # (sets, K, g, g)
        return -logits.log_softmax(-1).diagonal(dim1=2, dim2=3).mean()
