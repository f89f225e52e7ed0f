"""What the parts of the generator cost: a block, an output head. Counted as in cost.py."""

from __future__ import annotations

from mirai_bench.config.model_config import ModelConfig, ffn_width
from mirai_bench.config.run_config import RunConfig


def block_flops(model: ModelConfig, tokens: int) -> float:
    """Returns the operations of one block over a sequence of `tokens`.

    Attention is counted in full, not halved for causality, as flop counters do.
    """
    head_width = model.width // model.heads
    qkv = model.width * (model.heads + 2 * model.kv_heads) * head_width
    matrices = qkv + model.width**2 + 3 * model.width * ffn_width(model.width)
    attention = 4.0 * tokens**2 * model.width  # queries by keys, and weights by values
    return 2.0 * tokens * matrices + attention


def output_flops(config: RunConfig) -> float:
    """Returns the operations of one image through one output head."""
    return 2.0 * config.num_tokens * config.model.width * config.tokenizer.vocabulary


def block_parameters(model: ModelConfig) -> int:
    """Returns the parameters of one block."""
    width = model.width
    head_width = width // model.heads
    attention = width * (model.heads + 2 * model.kv_heads) * head_width + width**2
    feed_forward = 3 * width * ffn_width(width)
    norms = 2 * width
    return attention + feed_forward + norms
