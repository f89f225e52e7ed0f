"""The 2015 Inception, in whose features FID is defined, from either of its two weight files.

The blocks are torch-fidelity's, which are TensorFlow's to the rounding. Letters: B images; h, w
pixels.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mirai_bench.utils.tensors import read_tensors

SIDE = 299  # pixels
# Channels of Mixed_6d's first branch, 17x17 each: 2,023 dimensions (ADM's sFID, after arXiv
# 2103.03841).
SPATIAL_CHANNELS = 7
SPATIAL_LAYER = "Mixed_6d"
# Images at a time on a CPU, whose caches hold the activations of so many: a sixth faster than 64.
CPU_BATCH = 16


def resize_as_tensorflow(images: Tensor, side: int) -> Tensor:
    """Resizes (B, 3, h, w) bilinearly as TensorFlow 1 does, which is part of the network's graph.

    Corners are not aligned, and there is no antialiasing.
    """
    x = images.float()
    for dim in (3, 2):
        size = x.shape[dim]
        position = torch.arange(side, device=x.device) * (size / side)
        low = position.long()
        fraction = position - low
        start = x.index_select(dim, low)
        step = x.index_select(dim, (low + 1).clamp(max=size - 1)) - start
        x = start + step * (fraction if dim == 3 else fraction[:, None])
    return x


def inception_layers() -> nn.Sequential:
    """Returns the layers up to the pooled features, with random weights and torch-fidelity's names."""
    from torch_fidelity import feature_extractor_inceptionv3 as blocks

    conv = blocks.BasicConv2d
    layers = OrderedDict[str, nn.Module](
        Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
        Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
        Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
        MaxPool_1=nn.MaxPool2d(3, 2),
        Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
        Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
        MaxPool_2=nn.MaxPool2d(3, 2),
        Mixed_5b=blocks.InceptionA(192, 32),
        Mixed_5c=blocks.InceptionA(256, 64),
        Mixed_5d=blocks.InceptionA(288, 64),
        Mixed_6a=blocks.InceptionB(288),
        Mixed_6b=blocks.InceptionC(768, 128),
        Mixed_6c=blocks.InceptionC(768, 160),
        Mixed_6d=blocks.InceptionC(768, 160),
        Mixed_6e=blocks.InceptionC(768, 192),
        Mixed_7a=blocks.InceptionD(768),
        Mixed_7b=blocks.InceptionE_1(1280),
        Mixed_7c=blocks.InceptionE_2(2048),
        AvgPool=nn.AdaptiveAvgPool2d(1),
    )
    return nn.Sequential(layers)


def _normed(layers: nn.Module) -> list[Any]:
    """Returns the blocks of a convolution `conv` and its batch norm `bn`, in order."""
    return [block for block in layers.modules() if hasattr(block, "bn")]


def fold_norms(layers: nn.Module) -> None:
    """Puts every batch norm into the convolution before it, which changes features by 2e-6."""
    layers.eval().double()
    for block in _normed(layers):
        block.conv = fuse_conv_bn_eval(block.conv, block.bn)
        block.bn = nn.Identity()
    layers.float()


class Inception(nn.Module):
    """The network, up to its pooled features or, with a head, to its logits."""

    head: Tensor | None
    """Weights (1008, 2048) of the classes, without the bias, or None."""

    def __init__(self, layers: nn.Sequential, head: Tensor | None = None) -> None:
        """`layers` have their weights already."""
        super().__init__()
        fold_norms(layers)
        self.layers = layers
        self.register_buffer("head", head)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns pool (B, 2048), spatial (B, 2023) and, with a head, logits (B, 1008)."""
        size = CPU_BATCH if images.device.type == "cpu" else len(images)
        parts = [self._features(part) for part in images.split(size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        x = (resize_as_tensorflow(images, SIDE) - 128) / 128
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        features = {}
        for name, layer in self.layers.named_children():
            x = layer(x)
            if name == SPATIAL_LAYER:
                # In the order height, width, channel of ADM's files.
                features["spatial"] = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        features["pool"] = x.flatten(1)
        if self.head is not None:
            features["logits"] = features["pool"] @ self.head.T
        return features


def load_compat(weights: Path) -> Inception:
    """Returns the network of torch-fidelity's file, with its head: the Inception Score needs logits."""
    state = read_tensors(weights)
    head = state.pop("fc.weight")
    state.pop("fc.bias")  # the Inception Score is made of logits without it
    layers = inception_layers()
    layers.load_state_dict(state)
    return Inception(layers, head)


def load_2015(weights: Path) -> Inception:
    """Returns the network of the TorchScript file that StyleGAN, EDM and clean-fid use.

    It has no logits here, so no Inception Score.
    """
    with warnings.catch_warnings():
        # torch.jit is deprecated, but the file is TorchScript.
        warnings.simplefilter("ignore", FutureWarning)
        network = torch.jit.load(str(weights), map_location="cpu")
    state = (network.net if hasattr(network, "net") else network).layers.state_dict()
    layers = inception_layers()
    # The layers come in the same order under other names. Their norms have no scale.
    names = [name.removesuffix(".beta") for name in state if name.endswith(".beta")]
    for name, block in zip(names, _normed(layers), strict=True):
        block.conv.weight.data.copy_(state[f"{name}.weight"])
        block.bn.bias.data.copy_(state[f"{name}.beta"])
        block.bn.running_mean.copy_(state[f"{name}.mean"])
        block.bn.running_var.copy_(state[f"{name}.var"])
    return Inception(layers)
