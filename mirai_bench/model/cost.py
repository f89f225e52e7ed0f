"""Floating-point operations, counted once and in one place. A multiply-add is 2; only matrix products count; backward is twice forward."""

from __future__ import annotations

import json
from typing import NamedTuple

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.run_config import Model, RunConfig, ffn_width
from mirai_bench.model.cross_entropy import part_rows
from mirai_bench.utils.device import resolve_device


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


LITE0_PER_PIXEL = {
    32: 14502.44,
    16: 9696.625,
}  # EfficientNet-Lite0 up to the stage of this stride, per pixel of its input


def encoder_flops(name: str, side: int) -> float:
    """Forward of one image through an image encoder whose grid is side x side cells; 0 for one that is not listed here."""
    if name in VITS:
        blocks, width, prefix, patch = VITS[name]
        tokens = side**2 + prefix
        return (
            blocks * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width) + 6.0 * (side * patch) ** 2 * width
        )
    if name == "efficientnet_lite0":
        stride = 32 if side <= 14 else 16  # inputs up to twice the 224 pixels of its training
        return LITE0_PER_PIXEL[stride] * (stride * side) ** 2
    return 0.0


def projector_layers(config: RunConfig) -> list[tuple[int, int, int]]:
    """(copies, inputs, outputs) of each linear layer of the projectors; the last one's outputs are the target's features."""
    f, width = config.foresight, config.model.width
    target = VITS[f.encoder.name][1] if f.uses_encoder and f.encoder.name in VITS else width
    sizes = [width, *[f.projector.hidden] * (f.projector.layers - 1), target]
    copies = [
        1 if f.projector.shared_trunk and layer < f.projector.layers - 1 else f.k
        for layer in range(f.projector.layers)
    ]
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
        return resolve_layer(f.teacher_layer or f.layer, config.model.depth) * block_flops(
            config.model, cells
        )
    if f.source == "random" or f.encoder.name == "masked_tokens":
        return f.encoder.depth * block_flops(config.model, cells)
    return 0.0 if f.encoder.cache else encoder_flops(f.encoder.name, config.grid[0])


def step_flops(config: RunConfig, foresight_on: bool = True) -> float:
    """One image of one training step: forward and backward of generator and heads, forward of the teacher."""
    extra = 3 * head_flops(config) + teacher_flops(config) if foresight_on else 0.0
    return 3 * forward_flops(config) + extra


def training_flops(config: RunConfig, steps: int, total_steps: int) -> float:
    """The first `steps` of `total_steps`: no foresight is computed during its warm-up."""
    warmup = (
        min(steps, -(-config.foresight.warmup * total_steps // 1)) if config.foresight.level != "none" else 0
    )
    return config.train.batch_size * (
        warmup * step_flops(config, False) + (steps - warmup) * step_flops(config)
    )


class DeviceBytes(NamedTuple):
    """Of one process. Activations are those of its micro-batch that are kept for the backward pass."""

    fixed: int
    """weights, gradients, two moments, EMA and a frozen teacher in float32; under autocast also the half-precision copies of the weights"""
    activations: int


def projector_states(config: RunConfig, narrow: int) -> float:
    """Bytes a token that foresight inside the model keeps: SiLU's in- and outputs of each projector, three float32 vectors of its cosine."""
    f = config.foresight
    if f.level != "internal":
        return 0.0
    trunks = 1 if f.projector.shared_trunk else f.k
    return (
        trunks * (f.projector.layers - 1) * 2 * narrow * f.projector.hidden + f.k * 3 * 4 * config.model.width
    )


def logit_bytes(config: RunConfig, rows: int, narrow: int) -> tuple[int, int]:
    """(kept for the backward pass: each head's two gradients; there only while one part of a head is computed), see cross_entropy.py."""
    vocabulary, width = config.tokenizer.vocabulary, config.model.width
    heads = config.foresight.k if config.foresight.level == "output" else 1
    part = min(rows, part_rows(vocabulary, resolve_device(config).type)) * vocabulary
    return heads * width * (narrow * rows + 4 * vocabulary), (4 + narrow) * part


def device_bytes(config: RunConfig, half: bool, world: int | None = None) -> DeviceBytes:
    """Of one of `world` processes, by default those of its trial. In each block: the inputs of its seven matrix products, queries, keys
    and values, SwiGLU's factors, the float32 residual stream before and after both norms, the dropout masks. An eager step; attention's
    T x T scores are never kept by the kernels of a GPU."""
    generator, heads = num_parameters(config)
    m, cells = config.model, config.grid[0] * config.grid[1]
    rows = (
        cells * config.train.batch_size // ((world or config.machine.workers) * config.machine.micro_batches)
    )
    narrow = 2 if half else 4
    block = narrow * (6 * m.width + 4 * ffn_width(m.width)) + 4 * 4 * m.width + 2 * m.width
    token = m.depth * block + projector_states(config, narrow)
    copies = 2 * (generator + heads) if half else 0
    fixed = 4 * (4 * (generator + heads) + generator + teacher_parameters(config)) + copies
    return DeviceBytes(fixed, int(rows * token) + sum(logit_bytes(config, rows, narrow)))


# Training images of the sets whose size is fixed; a folder's are counted in the manifest of its prepared codes.
IMAGES = {"digits": 1500, "cifar10": 50_000, "imagenet": 1_281_167}


def num_images(config: RunConfig) -> int | None:
    """Of the training split; None where that is not known before the data is prepared."""
    data = config.data
    name = data.name if data.dataset == "folder" else data.dataset
    codes = config.machine.codes
    folders = (
        [codes] if codes is not None else (config.machine.runs / "codes").glob(f"{name}-{data.image_size}-*")
    )
    for folder in folders if data.dataset == "folder" else []:
        try:
            return int(json.loads((folder / "train" / "manifest.json").read_bytes())["num_images"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return IMAGES.get(name)


def block_parameters(model: Model) -> int:
    width, head_width = model.width, model.width // model.heads
    return (
        width * (model.heads + 2 * model.kv_heads) * head_width
        + width**2
        + 3 * width * ffn_width(width)
        + 2 * width
    )


def num_parameters(config: RunConfig) -> tuple[int, int]:
    """(generator, foresight heads), as they are built."""
    m, f, vocabulary = config.model, config.foresight, config.tokenizer.vocabulary
    width = m.width
    generator = (
        2 * vocabulary * width + (config.data.classes + 1) * width + m.depth * block_parameters(m) + width
    )
    if f.level == "none":
        return generator, 0
    if f.level == "output":
        return generator, (f.k - 1) * width * vocabulary
    return generator, sum(stack * (a + 1) * b for stack, a, b in projector_layers(config))


LITE0_PARAMETERS = 3_371_024  # EfficientNet-Lite0 without its classifier


def encoder_parameters(name: str) -> int:
    """Of an image encoder without a classifier, its position table at the size it was trained at; 0 for one that is not listed in flops.py."""
    if name in VITS:
        blocks, width, _, patch = VITS[name]
        return blocks * (12 * width**2 + 13 * width) + 3 * patch**2 * width
    return LITE0_PARAMETERS if name == "efficientnet_lite0" else 0


def teacher_parameters(config: RunConfig) -> int:
    """Of the frozen network beside the student. None for Mirai-E, whose teacher is the EMA itself."""
    f, m, vocabulary = config.foresight, config.model, config.tokenizer.vocabulary
    if f.level != "internal" or (f.explicit and f.source != "frozen"):
        return 0
    if f.source == "frozen":
        return num_parameters(config)[0]
    if f.source == "random" or f.encoder.name == "masked_tokens":
        return f.encoder.depth * block_parameters(m) + (2 * vocabulary + 2) * m.width
    return encoder_parameters(f.encoder.name)


def checkpoint_bytes(config: RunConfig) -> int:
    """One checkpoint: weights and two moments of generator and heads, and the generator's EMA, in float32."""
    generator, heads = num_parameters(config)
    return 4 * (3 * (generator + heads) + generator)
