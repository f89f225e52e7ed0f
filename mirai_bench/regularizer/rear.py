"""reAR: a noisy context, and code vectors as targets at two depths.

Letters: B batch, T tokens, V codes, Z width of their vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.projector import ProjectorConfig
from mirai_bench.config.regularizer import RearConfig
from mirai_bench.data.batch import Batch
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.foresight.context import SourceContext
from mirai_bench.foresight.loss import cosine_loss
from mirai_bench.foresight.projector import Projector
from mirai_bench.model.transformer import ARModel
from mirai_bench.regularizer.regularizer import Moment, Prepared, Reading, Regularizer
from mirai_bench.utils.device import send

MLP_LAYERS = 2


class Rear(Regularizer):
    """reAR (ICLR 2026): annealed token noise, and the tokenizer's own vectors as targets."""

    vectors: Tensor
    """(V, Z), the vectors of the codes."""
    index: Tensor
    """(T, 1) long, the token that each state has consumed last."""
    valid: Tensor
    """(T, 1) bool, whether it has consumed one."""

    def __init__(self, context: SourceContext, config: RearConfig) -> None:
        super().__init__()
        run = context.config
        self.weight = config.weight
        self.noise_until = config.noise_until
        self.vocabulary = run.tokenizer.vocabulary
        if self.weight == 0:
            return
        depth = run.model.depth
        shallow = 0 if config.shallow == 0 else resolve_layer(config.shallow, depth)
        self.taps = (shallow, resolve_layer(config.deep, depth))
        vectors = load_tokenizer(run, torch.device("cpu")).vectors().float()
        mlp = ProjectorConfig(layers=MLP_LAYERS, hidden=run.regularizer_hidden)
        self.current = Projector(mlp, 1, run.model.width, vectors.shape[1])
        self.next = Projector(mlp, 1, run.model.width, vectors.shape[1])
        consumed = torch.arange(run.num_tokens)[:, None] - 1  # state s has consumed token s-1
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("index", consumed.clamp(min=0), persistent=False)
        self.register_buffer("valid", consumed >= 0, persistent=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Initialises the two MLPs."""
        if self.weight > 0:
            self.current.init_weights(generator)
            self.next.init_weights(generator)

    def prepare(self, batch: Batch, moment: Moment) -> Prepared:
        """Returns the batch with the tokens that the model reads, (B, T), while there is noise."""
        if moment.progress >= self.noise_until:
            return Prepared(batch)
        bound = 1 - moment.progress / self.noise_until
        images, tokens = batch.tokens.shape
        draws = moment.uniform(images, 1 + 2 * tokens)
        probability = bound * draws[:, :1]  # one for each image
        replaced = draws[:, 1 : 1 + tokens] < probability  # (B, T)
        codes = (draws[:, 1 + tokens :] * self.vocabulary).astype(np.int64)
        noise = send(np.where(replaced, codes, -1), batch.tokens.device)
        return Prepared(batch, (torch.where(noise < 0, batch.tokens, noise),))

    def read(self, model: ARModel, prepared: Prepared, labels: Tensor, taps: tuple[int, ...]) -> Reading:
        """Returns the states of a model that reads the noisy tokens."""
        inputs = prepared.extra[0] if prepared.extra else prepared.batch.tokens
        return Reading(*model.run(model.embed(inputs[:, :-1], labels), taps=taps, dropout=True))

    def loss(self, model: ARModel, reading: Reading, prepared: Prepared, labels: Tensor) -> Tensor:
        """Returns the cosine distances to the current and to the next token's vector, a sum of means."""
        shallow, deep = (reading.streams[tap] for tap in self.taps)
        targets = self.vectors[prepared.batch.tokens]  # (B, T, Z): without noise
        every = torch.arange(len(self.index), device=targets.device)[:, None]  # state s predicts token s
        current = cosine_loss(self.current(shallow), targets, self.index, self.valid)
        upcoming = cosine_loss(self.next(deep), targets, every, torch.ones_like(self.valid))
        return current[0] + upcoming[0]
