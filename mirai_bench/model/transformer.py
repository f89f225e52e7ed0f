"""The LlamaGen decoder (arXiv 2406.06525): a class token, then image tokens in raster order. Parameter names are the official ones.

Letters: B batch, T = H·W tokens, D width, V codes, G query heads, g key/value heads, d head width.
State s of T has consumed the class token and x_0 … x_{s-1}, and predicts x_s: state 0 is the class token, state s+1 has consumed x_s.
Nothing here depends on train/eval mode: dropout is an argument.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.config.run_config import Model, RunConfig, ffn_width
from mirai_bench.model.kernels import NORM_EPS, FusedRMSNorm, causal_attention

INIT_STD = 0.02


class States(NamedTuple):
    hidden: Tensor | None  # (B, T, D) residual stream after block `tap`, no final norm
    final: Tensor  # (B, T, D) after the final norm: what the head reads


class Output(NamedTuple):
    logits: Tensor  # (B, T, V)
    hidden: Tensor | None  # as in States
    final: Tensor


class Cache(NamedTuple):
    """Keys and values of the positions decoded so far, one pair a block, each (B, g, T, d); zeros, not rubbish, where none was decoded."""

    keys: list[Tensor]
    values: list[Tensor]


class Place(NamedTuple):
    """A position on the tokens' axis. A number on a CPU: a decoding step reads the cache up to it. A tensor (1) on a GPU: the step reads the
    first `length` positions through a mask, so that none of its shapes depends on the position and one recorded step serves them all.
    """

    position: int | Tensor
    length: int

    def read(self, table: Tensor, axis: int) -> Tensor:
        """The slice of width 1 at the position."""
        if isinstance(self.position, int):
            return table.narrow(axis, self.position, 1)
        return table.index_select(axis, self.position)

    def write(self, table: Tensor, axis: int, new: Tensor) -> None:
        if isinstance(self.position, int):
            table.narrow(axis, self.position, 1).copy_(new)
        else:
            table.index_copy_(axis, self.position, new)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """(1, 1, 1, length) to be added to the scores: -inf at the positions to come; None where none of them is read."""
        if isinstance(self.position, int):
            return None
        future = torch.arange(self.length, device=self.position.device) > self.position
        return torch.zeros(self.length, dtype=dtype, device=future.device).masked_fill(future, -torch.inf)[
            None, None, None
        ]


def rope_table(height: int, width: int, head_width: int, base: float = 10_000.0) -> Tensor:
    """(1 + H·W, d/2, 2) cosines and sines: the first half of the pairs turns with the row, the second with the column.

    Slot 0, the class token's, is all zeros: its rotated queries and keys vanish, as in LlamaGen.
    """
    half = head_width // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2, dtype=torch.float32) / half)  # (d/4)
    rows = torch.outer(torch.arange(height, dtype=torch.float32), frequencies)[:, None].expand(-1, width, -1)
    columns = torch.outer(torch.arange(width, dtype=torch.float32), frequencies)[None].expand(height, -1, -1)
    angles = torch.cat([rows, columns], -1).reshape(height * width, half)
    table = torch.stack([angles.cos(), angles.sin()], -1)
    return torch.cat([torch.zeros(1, half, 2), table])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """x (B, T, heads, d), rope (T, d/2, 2) → x with each pair of neighbouring channels turned by its angle, in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers fuse these, but nothing complex
        cos, sin = rope[:, None, :, 0], rope[:, None, :, 1]
        even, odd = pairs.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    else:  # one product, on a CPU 3x as fast as four strided real ones
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope)[:, None])
    return turned.flatten(-2).type_as(x)


def drop(x: Tensor, probability: float, dropout: bool) -> Tensor:
    return F.dropout(x, probability) if dropout and probability > 0 else x


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32:  # a GPU has a kernel for it, a CPU seven
            return FusedRMSNorm.apply(x, self.weight)
        return F.rms_norm(x, x.shape[-1:], self.weight, NORM_EPS)


class Attention(nn.Module):
    def __init__(self, config: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = (
            config.heads,
            config.kv_heads,
            config.width // config.heads,
        )
        self.wqkv = nn.Linear(
            config.width, (config.heads + 2 * config.kv_heads) * self.head_width, bias=False
        )
        self.wo = nn.Linear(config.width, config.width, bias=False)

    def heads_of(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) → queries (B, G, T, d), keys and values (B, g, T, d)."""
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_width))  # (B, T, G + 2g, d)
        # split, not slices: the gradient is one concatenation, not a sum of zero-filled tensors
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
        q, k = rotate(qk, rope).split([self.heads, self.kv_heads], 2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        if causal and q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
            y = causal_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.kv_heads != self.heads
            )
        return self.wo(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = ffn_width(width)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: Model) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.width)
        self.attention_norm = RMSNorm(config.width)
        self.ffn_norm = RMSNorm(config.width)
        self.residual_dropout, self.ffn_dropout = config.residual_dropout, config.ffn_dropout

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = True,
        dropout: bool = False,
    ) -> Tensor:
        q, k, v = self.attention.heads_of(self.attention_norm(x), rope)
        x = x + drop(self.attention.attend(q, k, v, mask, causal), self.residual_dropout, dropout)
        return x + drop(self.feed_forward(self.ffn_norm(x)), self.ffn_dropout, dropout)

    def decode(
        self, x: Tensor, rope: Tensor, keys: Tensor, values: Tensor, place: Place, mask: Tensor | None
    ) -> Tensor:
        """x (B, 1, D), the state at `place`; its key and value are written to the cache."""
        q, k, v = self.attention.heads_of(self.attention_norm(x), rope)
        place.write(keys, 2, k)
        place.write(values, 2, v)
        x = x + self.attention.attend(
            q, keys[:, :, : place.length], values[:, :, : place.length], mask, False
        )
        return x + self.feed_forward(self.ffn_norm(x))


class LabelEmbedder(nn.Module):
    """The last row, `classes`, is the null class of classifier-free guidance."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)


class ARModel(nn.Module):
    rope: Tensor

    def __init__(self, config: Model, vocabulary: int, classes: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.vocabulary, self.classes, self.grid = config, vocabulary, classes, grid
        self.tokens = grid[0] * grid[1]
        self.cls_embedding = LabelEmbedder(classes, config.width)
        self.tok_embeddings = nn.Embedding(vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.output = nn.Linear(config.width, vocabulary, bias=False)
        self.register_buffer("rope", rope_table(*grid, config.width // config.heads), persistent=False)

    def init_weights(self, generator: torch.Generator) -> ARModel:
        """N(0, 0.02) for every matrix, in the order of the parameters; the head starts at zero."""
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)
        nn.init.zeros_(self.output.weight)
        return self

    def embed(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """(B, t) tokens and (B,) labels → (B, 1 + t, D)."""
        return torch.cat(
            [self.cls_embedding.embedding_table(labels)[:, None], self.tok_embeddings(tokens)], 1
        )

    def trunk(
        self, tokens: Tensor, labels: Tensor, *, dropout: bool = False, tap: int | None = None
    ) -> States:
        """Teacher forcing up to the head. tokens (B, T): x_s is predicted by state s, so the last token is never an input. labels (B,), null =
        classes."""
        x = drop(self.embed(tokens[:, :-1], labels), self.config.token_dropout, dropout)
        hidden = None
        for index, block in enumerate(self.layers, 1):
            x = block(x, self.rope[: x.shape[1]], dropout=dropout)
            if index == tap:
                hidden = x
        return States(hidden, self.norm(x))

    def forward(
        self, tokens: Tensor, labels: Tensor, *, dropout: bool = False, tap: int | None = None
    ) -> Output:
        """As `trunk`, with the logits; training has no use for those as a whole (cross_entropy.py)."""
        states = self.trunk(tokens, labels, dropout=dropout, tap=tap)
        return Output(self.output(states.final), *states)

    def states(self, tokens: Tensor, labels: Tensor, layer: int) -> Tensor:
        """(B, T, D) residual stream after block `layer`; only the first `layer` blocks run, no dropout."""
        x = self.embed(tokens[:, :-1], labels)
        for block in self.layers[:layer]:
            x = block(x, self.rope[: x.shape[1]])
        return x

    def new_cache(self, batch: int) -> Cache:
        c, like = self.config, self.tok_embeddings.weight
        shape = (batch, c.kv_heads, self.tokens, c.width // c.heads)
        return Cache(
            *(
                [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in self.layers]
                for _ in range(2)
            )
        )

    def decode(self, x: Tensor, place: Place, cache: Cache) -> Tensor:
        """x (B, D), the embedding of the input at `place` (0: class token, p: x_{p-1}) → logits (B, V) of the token there."""
        x, rope, mask = x[:, None], place.read(self.rope, 0), place.mask(x.dtype)
        for block, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x = block.decode(x, rope, keys, values, place, mask)
        return self.output(self.norm(x))[:, 0]


def build_model(config: RunConfig) -> ARModel:
    """The model of a run, initialised by the run's seed; on the CPU."""
    model = ARModel(config.model, config.tokenizer.vocabulary, config.data.classes, config.grid)
    return model.init_weights(torch.Generator().manual_seed(config.seed))
