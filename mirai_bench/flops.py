"""Floating-point operations, counted once and in one place. A multiply-add is 2; only matrix products count; backward is twice forward."""

from __future__ import annotations

from .config import Model, RunConfig
from .foresight_config import resolve_layer


def ffn_width(width: int) -> int:
    """SwiGLU's hidden width: 8/3 of the width, rounded up to a multiple of 256 (below width 256: of 16), as LlamaGen does."""
    multiple = 256 if width >= 256 else 16
    return -(-int(8 * width / 3) // multiple) * multiple


def block_flops(model: Model, tokens: int) -> float:
    """Forward of one block over a sequence of `tokens`, attention counted in full (not halved for causality), as flop counters do."""
    head_width = model.width // model.heads
    qkv = model.width * (model.heads + 2 * model.kv_heads) * head_width
    matrices = qkv + model.width**2 + 3 * model.width * ffn_width(model.width)
    return 2.0 * tokens * matrices + 4.0 * tokens**2 * model.width


def forward_flops(config: RunConfig) -> float:
    """One image through the generator (teacher forcing)."""
    cells = config.grid[0] * config.grid[1]
    head = 2.0 * cells * config.model.width * config.tokenizer.vocabulary
    return config.model.depth * block_flops(config.model, cells) + head


# Image encoders: blocks, width, class and register tokens, patch side in pixels.
VITS = {
    f"{family}_{size}{variant}": (*shape, prefix, patch)
    for family, variant, sizes, prefix, patch in (
        ("dinov2", "", "sbl", 1, 14), ("dinov2", "_reg", "sbl", 5, 14), ("dinov3", "", "sbl", 5, 16),
        ("mae", "", "b", 1, 16), ("clip", "", "b", 1, 16),
    )
    for size, shape in {"s": (12, 384), "b": (12, 768), "l": (24, 1024)}.items() if size in sizes
}  # fmt: skip
LITE0_PER_PIXEL = {32: 14502.44, 16: 9696.625}  # EfficientNet-Lite0 up to the stage of this stride, per pixel of its input


def encoder_flops(name: str, side: int) -> float:
    """Forward of one image through an image encoder whose grid is side x side cells; 0 for one that is not listed here."""
    if name in VITS:
        blocks, width, prefix, patch = VITS[name]
        tokens = side**2 + prefix
        return blocks * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width) + 6.0 * (side * patch) ** 2 * width
    if name == "efficientnet_lite0":
        stride = 32 if side <= 14 else 16  # inputs up to twice the 224 pixels of its training
        return LITE0_PER_PIXEL[stride] * (stride * side) ** 2
    return 0.0


def projector_layers(config: RunConfig) -> list[tuple[int, int, int]]:
    """(copies, inputs, outputs) of each linear layer of the projectors; the last one's outputs are the target's features."""
    f, width = config.foresight, config.model.width
    target = VITS[f.encoder.name][1] if f.uses_encoder and f.encoder.name in VITS else width
    sizes = [width, *[f.projector.hidden] * (f.projector.layers - 1), target]
    copies = [1 if f.projector.shared_trunk and layer < f.projector.layers - 1 else f.k for layer in range(f.projector.layers)]
    return list(zip(copies, sizes, sizes[1:], strict=False))


def head_flops(config: RunConfig) -> float:
    """Forward of one image through the foresight heads: projectors, or multi-token heads."""
    f, cells, width = config.foresight, config.grid[0] * config.grid[1], config.model.width
    if f.level == "none":
        return 0.0
    if f.level == "output":
        return 2.0 * cells * (f.k - 1) * width * config.tokenizer.vocabulary
    return sum(2.0 * cells * stack * a * b for stack, a, b in projector_layers(config))


def teacher_flops(config: RunConfig) -> float:
    """Forward of one image through the teacher; nothing where its features are read from the cache or `timm:` names the encoder."""
    f, cells = config.foresight, config.grid[0] * config.grid[1]
    if f.level != "internal":
        return 0.0
    if f.explicit:
        return resolve_layer(f.teacher_layer or f.layer, config.model.depth) * block_flops(config.model, cells)
    if f.source == "random" or f.encoder.name == "masked_tokens":
        return f.encoder.depth * block_flops(config.model, cells)
    return 0.0 if f.encoder.cache else encoder_flops(f.encoder.name, config.grid[0])


def step_flops(config: RunConfig, foresight_on: bool = True) -> float:
    """One image of one training step: forward and backward of generator and heads, forward of the teacher."""
    extra = 3 * head_flops(config) + teacher_flops(config) if foresight_on else 0.0
    return 3 * forward_flops(config) + extra


def training_flops(config: RunConfig, steps: int, total_steps: int) -> float:
    """The first `steps` of `total_steps`: no foresight is computed during its warm-up."""
    warmup = min(steps, -(-config.foresight.warmup * total_steps // 1)) if config.foresight.level != "none" else 0
    return config.train.batch_size * (warmup * step_flops(config, False) + (steps - warmup) * step_flops(config))
