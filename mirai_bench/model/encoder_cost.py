"""What image encoders cost, each by its name: a forward pass, parameters, the width of the features.

Counted as in cost.py. None is not known here (`timm:<model>`).
"""

from __future__ import annotations

from typing import NamedTuple

from mirai_bench.config.foresight import resolve_layer


class VisionTransformer(NamedTuple):
    """The size of a ViT."""

    blocks: int
    width: int
    prefix: int
    """Number of class and register tokens."""
    patch: int
    """Side of a patch in pixels."""


# The sizes that timm builds. DINOv2's register variants and DINOv3 have four register tokens.
VITS = {
    "dinov2_s": VisionTransformer(12, 384, 1, 14),
    "dinov2_b": VisionTransformer(12, 768, 1, 14),
    "dinov2_l": VisionTransformer(24, 1024, 1, 14),
    "dinov2_s_reg": VisionTransformer(12, 384, 5, 14),
    "dinov2_b_reg": VisionTransformer(12, 768, 5, 14),
    "dinov2_l_reg": VisionTransformer(24, 1024, 5, 14),
    "dinov3_s": VisionTransformer(12, 384, 5, 16),
    "dinov3_b": VisionTransformer(12, 768, 5, 16),
    "dinov3_l": VisionTransformer(24, 1024, 5, 16),
    "mae_b": VisionTransformer(12, 768, 1, 16),
    "mae_l": VisionTransformer(24, 1024, 1, 16),
    "clip_b": VisionTransformer(12, 768, 1, 16),
}
LITE0 = "efficientnet_lite0"
LITE0_PARAMETERS = 3_371_024  # without the classifier
# EfficientNet-Lite0 up to the stage of this stride: operations per pixel of its input, and channels
# of the stage.
LITE0_STAGES = {32: (14502.44, 320), 16: (9696.625, 112)}
VGG = "vgg16_relu3_3"
VGG_PARAMETERS = 1_735_488  # of the layers up to relu3_3
VGG_STAGE = (372_096, 256)  # operations per pixel of its input, and channels; the stride is 4


def _lite0_stride(side: int) -> int:
    """Returns the stride of the stage that has a grid of side x side cells."""
    return 32 if side <= 14 else 16  # on an input of up to 448 pixels, twice those of its training


def _blocks(vit: VisionTransformer, layer: int | str | None) -> int:
    """Returns the number of blocks that run: all of them, or those up to the layer of the features."""
    return vit.blocks if layer is None else resolve_layer(layer, vit.blocks)


def encoder_flops(name: str, side: int, layer: int | str | None = None) -> float | None:
    """Returns the operations of one image through an encoder with side x side cells, or None.

    `layer` is the block of a ViT that gives the features, if it is not the last one.
    """
    if name in VITS:
        vit = VITS[name]
        tokens = side**2 + vit.prefix
        # 12 D² weights per token in queries, keys, values, output and an MLP of ratio 4, and the
        # two products of attention.
        block = 24.0 * tokens * vit.width**2 + 4.0 * tokens**2 * vit.width
        patches = 6.0 * (side * vit.patch) ** 2 * vit.width  # three channels of each pixel
        return _blocks(vit, layer) * block + patches
    if name == LITE0:
        stride = _lite0_stride(side)
        return LITE0_STAGES[stride][0] * (stride * side) ** 2
    return VGG_STAGE[0] * (4.0 * side) ** 2 if name == VGG else None


def encoder_parameters(name: str, layer: int | str | None = None) -> int | None:
    """Returns the parameters of an encoder without a classifier, or None. `layer` as above."""
    if name in VITS:
        vit = VITS[name]
        block = 12 * vit.width**2 + 13 * vit.width  # matrices; biases and norms
        return _blocks(vit, layer) * block + 3 * vit.patch**2 * vit.width
    return {LITE0: LITE0_PARAMETERS, VGG: VGG_PARAMETERS}.get(name)


def encoder_width(name: str, side: int) -> int | None:
    """Returns the width Z of an encoder's features on side x side cells, or None."""
    if name in VITS:
        return VITS[name].width
    if name == LITE0:
        return LITE0_STAGES[_lite0_stride(side)][1]
    return VGG_STAGE[1] if name == VGG else None
