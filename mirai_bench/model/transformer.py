"""The decoder of LlamaGen (arXiv 2406.06525): a class token, then image tokens in raster order.

Letters: B batch, T = H·W tokens, D width, V codes, G query heads, g key/value heads, d head width.

State s of T has consumed the class token and x_0 … x_{s-1}, and predicts x_s: state 0 is the class
token, and state s+1 has consumed x_s. Parameter names are the official ones (LlamaGen's gpt.py), so
that its weights load as they are. Nothing here depends on train/eval mode: dropout is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.config.model_config import ModelConfig, ffn_width
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cache import CachePosition
from mirai_bench.model.kernels import attention, decoding_attention, rms_norm
from mirai_bench.model.rope import rope_table, rotate

INIT_STD = 0.02  # LlamaGen's `initializer_range`
Grid = tuple[int, int]  # (H, W), in tokens


class States(NamedTuple):
    """The hidden states of a batch."""

    hidden: Tensor | None
    """(B, T, D) residual stream after block `tap`, without a final norm. None without a `tap`."""
    final: Tensor
    """(B, T, D) after the final norm: what the head reads."""


class Output(NamedTuple):
    """The logits of a batch, and its states."""

    logits: Tensor
    """(B, T, V)."""
    hidden: Tensor | None
    """As in States."""
    final: Tensor
    """As in States."""


def drop(x: Tensor, probability: float, dropout: bool) -> Tensor:
    """Applies dropout to x if `dropout` is true."""
    return F.dropout(x, probability) if dropout and probability > 0 else x


# ---- the model


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (…, D) over its last axis."""
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Multi-head attention with 2-D RoPE.

    Fewer heads of keys and values than of queries is grouped-query attention.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        self.head_width = config.width // config.heads
        self.dropout = config.attention_dropout
        qkv_width = (self.heads + 2 * self.kv_heads) * self.head_width
        self.wqkv = nn.Linear(config.width, qkv_width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)

    def project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the queries (B, G, T, d), keys and values (B, g, T, d) of x (B, T, D)."""
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_width))  # (B, T, G + 2g, d)
        # `split` and not slices, because its gradient is one concatenation and not a sum of
        # zero-filled tensors.
        if torch.compiler.is_compiling():
            # Apart, the rotations' backward pass and the concatenation become one kernel.
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
            q = rotate(q, rope)
            k = rotate(k, rope)
        else:
            qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
            q, k = rotate(qk, rope).split([self.heads, self.kv_heads], 2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: bool
    ) -> Tensor:
        """Returns the output (B, T, D) of attention."""
        y = attention(q, k, v, mask=mask, causal=causal, dropout=self.dropout if dropout else 0.0)
        return self.wo(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The feed-forward network SwiGLU (arXiv 2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = ffn_width(width)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (…, D) to (…, D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.width)
        self.attention_norm = RMSNorm(config.width)
        self.ffn_norm = RMSNorm(config.width)
        self.residual_dropout = config.residual_dropout
        self.ffn_dropout = config.ffn_dropout

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = True,
        dropout: bool = False,
    ) -> Tensor:
        """Maps the residual stream x (B, T, D) to the next one.

        `mask` (T, T) bool, or (B, 1, T, T), replaces the causal mask. `rope` is (T, d/2, 2).
        """
        q, k, v = self.attention.project(self.attention_norm(x), rope)
        y = self.attention.attend(q, k, v, mask, causal, dropout)
        x = x + drop(y, self.residual_dropout, dropout)
        return x + drop(self.feed_forward(self.ffn_norm(x)), self.ffn_dropout, dropout)

    def decode(
        self, x: Tensor, rope: Tensor, cache: Tensor, position: CachePosition, mask: Tensor | None
    ) -> Tensor:
        """Maps the state x (B, 1, D) at `position` to the next one.

        Writes its key and value to the cache (2, B, g, T, d).
        """
        q, k, v = self.attention.project(self.attention_norm(x), rope)
        position.write(cache, 3, torch.stack([k, v]))  # one kernel for both
        # For a DevicePosition also later positions, which the mask hides.
        keys, values = cache[:, :, :, : position.length]
        y = decoding_attention(q, keys, values, mask)  # (B, G, 1, d)
        x = x + self.attention.wo(y.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.ffn_norm(x))


class LabelEmbedder(nn.Module):
    """The class embeddings. The last row, `classes`, is the null class, which CFG needs."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)


class ARModel(nn.Module):
    """The class-conditional autoregressive model over image tokens."""

    rope: Tensor

    def __init__(self, config: ModelConfig, vocabulary: int, classes: int, grid: Grid) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.grid = grid
        self.tokens = grid[0] * grid[1]
        self.cls_embedding = LabelEmbedder(classes, config.width)
        self.tok_embeddings = nn.Embedding(vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.output = nn.Linear(config.width, vocabulary, bias=False)
        rope = rope_table(*grid, config.width // config.heads)
        self.register_buffer("rope", rope, persistent=False)  # computed, so not in checkpoints

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ARModel:
        """Moves and casts the model, as `to` and its kind do. The rotations stay float32."""
        rope = self.rope
        super()._apply(fn, recurse)
        # Sampling in bfloat16 casts the model. Rounded rotations would be those of other angles.
        self.rope = rope.to(self.rope.device)
        return self

    def init_weights(self, generator: torch.Generator) -> ARModel:
        """Draws every matrix from N(0, 0.02), in the order of the parameters.

        The output head starts at zero, so that training starts at the loss log V.
        """
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)
        nn.init.zeros_(self.output.weight)
        return self

    def embed(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Returns the embeddings (B, 1 + t, D) of labels (B,) and tokens (B, t)."""
        of_class = self.cls_embedding.embedding_table(labels)[:, None]  # (B, 1, D)
        return torch.cat([of_class, self.tok_embeddings(tokens)], 1)

    def trunk(
        self, tokens: Tensor, labels: Tensor, *, dropout: bool = False, tap: int | None = None
    ) -> States:
        """Returns the states of teacher forcing, without the logits.

        Training has no use for all logits at once. tokens is (B, T): x_s is predicted by state s,
        so the last token is never an input. labels is (B,); the null class is `classes`. `tap` is
        the 1-based block whose residual stream is returned as `hidden`.
        """
        taps = () if tap is None else (tap,)
        final, streams = self.run(self.embed(tokens[:, :-1], labels), taps=taps, dropout=dropout)
        return States(None if tap is None else streams[tap], final)

    def run(
        self,
        x: Tensor,
        *,
        taps: Collection[int] = (),
        rope: Tensor | None = None,
        mask: Tensor | None = None,
        dropout: bool = False,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns the final states (B, t, D) of embedded inputs x (B, t, D), and streams by block.

        The streams are the residual streams (B, t, D) after the blocks `taps`; 0 is the embedded
        input. `rope` (t, d/2, 2) replaces the rotations of the token grid, and `mask` (B, 1, t, t)
        bool the causal mask.
        """
        rope = self.rope[: x.shape[1]] if rope is None else rope
        x = drop(x, self.config.token_dropout, dropout)
        streams = {0: x} if 0 in taps else {}
        for index, block in enumerate(self.layers, 1):
            x = block(x, rope, mask=mask, causal=mask is None, dropout=dropout)
            if index in taps:
                streams[index] = x
        return self.norm(x), streams

    def forward(
        self, tokens: Tensor, labels: Tensor, *, dropout: bool = False, tap: int | None = None
    ) -> Output:
        """Returns the states of `trunk` together with the logits (B, T, V)."""
        states = self.trunk(tokens, labels, dropout=dropout, tap=tap)
        return Output(self.output(states.final), *states)

    def states(self, tokens: Tensor, labels: Tensor, layer: int) -> Tensor:
        """Returns the residual stream (B, T, D) after block `layer`, without dropout.

        Only the first blocks run, which is what makes a teacher of the same size cheap.
        """
        x = self.embed(tokens[:, :-1], labels)
        for block in self.layers[:layer]:
            x = block(x, self.rope[: x.shape[1]])
        return x

    def new_cache(self, batch: int) -> list[Tensor]:
        """Returns an empty cache for decoding `batch` sequences.

        It holds the keys and the values of each block, (2, B, g, T, d).
        """
        # T positions: the class token and all tokens but the last, which is never an input.
        shape = (2, batch, self.config.kv_heads, self.tokens, self.config.width // self.config.heads)
        # Zeros, because masked positions must not contain NaN.
        return [self.tok_embeddings.weight.new_zeros(shape) for _ in self.layers]

    def decode(self, x: Tensor, position: CachePosition, cache: list[Tensor]) -> Tensor:
        """Returns the logits (B, V) of the token at `position`.

        x (B, D) is the embedding of the input there: that of the class at position 0, that of
        x_{p-1} at position p.
        """
        x = x[:, None]  # (B, 1, D)
        rope = position.read(self.rope, 0)  # (1, d/2, 2)
        mask = position.mask(x.dtype)  # the same for all blocks
        for block, of_block in zip(self.layers, cache, strict=True):
            x = block.decode(x, rope, of_block, position, mask)  # type: ignore[operator]  # a Block
        return self.output(self.norm(x))[:, 0]


def build_model(config: RunConfig) -> ARModel:
    """Returns the model of a run on the CPU, initialised by the run's `seeds.init`."""
    model = ARModel(config.model, config.tokenizer.vocabulary, config.data.classes, config.grid)
    return model.init_weights(torch.Generator().manual_seed(config.seed_of("init")))
