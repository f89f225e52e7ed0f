"""The size and the dropout of the transformer."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from mirai_bench.config.sections import Positive, Rate, Section

# name: (depth, width, heads). B to 3B are LlamaGen's (arXiv 2406.06525, table 1).
MODEL_SIZES = {
    "nano": (3, 64, 4),
    "mini": (4, 128, 4),
    "tiny": (6, 256, 4),
    "small": (8, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (36, 1280, 20),
    "XXL": (48, 1536, 24),
    "3B": (24, 3200, 32),
}


class ModelConfig(Section):
    """The decoder-only transformer.

    `size` sets depth, width and heads, each of which may also be written out.
    """

    size: str = "nano"
    """Name of a model size: nano, mini, tiny, small, B, L, XL, XXL or 3B."""
    depth: Positive
    """Number of transformer blocks."""
    width: Positive
    """Width D of the residual stream."""
    heads: Positive
    """Number of attention heads."""
    kv_heads: Positive
    """Number of heads of keys and values. Fewer than `heads` is grouped-query attention."""
    token_dropout: Rate = 0.1
    """Dropout of the embedded input."""
    residual_dropout: Rate = 0.1
    """Dropout of the output of each attention layer."""
    ffn_dropout: Rate = 0.1
    """Dropout of the output of each feed-forward layer."""
    attention_dropout: Rate = 0.0
    """Dropout of the weights of attention (paper: 0.1 in its text, 0 in its code)."""
    class_dropout: Rate = 0.1
    """Probability that the class is replaced by the null class, which classifier-free guidance \
needs."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        size = data.get("size", "nano")
        if not isinstance(size, str) or size not in MODEL_SIZES:
            sizes = ", ".join(MODEL_SIZES)
            raise ValueError(f"model.size is {size!r}, which is not one of {sizes}")
        # What is written out wins over what the size says.
        filled = dict(zip(("depth", "width", "heads"), MODEL_SIZES[size], strict=True)) | data
        return {"kv_heads": filled["heads"]} | filled

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        heads = self.heads
        # The two axes of the grid share a head's features, and a rotation turns pairs of them.
        if self.width % heads or (self.width // heads) % 4:
            raise ValueError(
                f"model.width is {self.width} with {heads} heads: 2-D RoPE needs a head width "
                "(width / heads) that is a multiple of 4"
            )
        if heads % self.kv_heads:
            raise ValueError(
                f"model.kv_heads is {self.kv_heads}, which does not divide model.heads = {heads}"
            )
        return self


def ffn_width(width: int) -> int:
    """Returns the hidden width of SwiGLU as in LlamaGen.

    It is 8/3 of the model's width, rounded up to a multiple of 256. Below a width of 256 it is
    rounded up to a multiple of 16.
    """
    multiple = 256 if width >= 256 else 16  # a step of 256 is coarse for a small model
    # FeedForward in LlamaGen's autoregressive/models/gpt.py truncates 8/3, and then rounds up.
    return -(-int(8 * width / 3) // multiple) * multiple
