"""The first layers of torchvision's VGG16, as the perceptual loss and a foresight teacher use them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from mirai_bench.utils.tensors import load_foreign, read_tensors

# Numbers of layers of torchvision's VGG16 .features, the last of each stage at one resolution.
RELU1_2 = 3
RELU2_2 = 8
RELU3_3 = 15


def build_layers() -> nn.Sequential:
    """Returns the layers up to relu3_3, without memory for their weights."""
    from torchvision.models import vgg16  # here, because a training without VGG16 starts sooner

    with torch.device("meta"):
        return vgg16(weights=None).features[: RELU3_3 + 1]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the weights of the layers up to relu3_3 from a state dict of VGG16's .features.

    Raises UserError for any other file.
    """
    state = read_tensors(path)
    layers = build_layers()
    what = "a state dict of torchvision's VGG16 .features"
    load_foreign(layers, state, path, what, assign=True, spare=True)
    return {name: state[name] for name in layers.state_dict()}


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """Returns `sha256:…` of the tensors in fp32, which is the same for every file that holds them."""
    sha = hashlib.sha256()
    for name, value in weights.items():
        sha.update(f"{name} {tuple(value.shape)}\n".encode())
        sha.update(value.float().contiguous().numpy().tobytes())
    return f"sha256:{sha.hexdigest()}"
