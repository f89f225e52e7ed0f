"""The distance of two images in the feature space of VGG16.

It is LPIPS (arXiv 1801.03924) without its learned weights of the channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg16

from mirai_bench.data.images.colors import IMAGENET
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import read_tensors

# Layers of torchvision's VGG16 .features whose output is compared: relu1_2, relu2_2 and relu3_3.
TAPS = (3, 8, 15)


def _layers() -> nn.Sequential:
    """Returns the layers up to the last tap, without memory for their weights."""
    with torch.device("meta"):
        return vgg16(weights=None).features[: TAPS[-1] + 1]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the weights of the layers up to the last tap from a state dict of VGG16's .features.

    Raises UserError for any other file.
    """
    state = read_tensors(path)
    try:
        weights = {name: state[name] for name in _layers().state_dict()}
        _layers().load_state_dict(weights, assign=True)  # the shapes
    except (RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a state dict of torchvision's VGG16 .features: {error}") from None
    return weights


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """Returns `sha256:…` of the tensors in fp32, which is the same for every file that holds them."""
    sha = hashlib.sha256()
    for name, value in weights.items():
        sha.update(f"{name} {tuple(value.shape)}\n".encode())
        sha.update(value.float().contiguous().numpy().tobytes())
    return f"sha256:{sha.hexdigest()}"


class Perceptual(nn.Module):
    """The distance, with frozen weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Takes what `read_weights` returned."""
        super().__init__()
        self.layers = _layers()
        self.layers.load_state_dict(weights, assign=True)
        self.requires_grad_(False)
        mean, deviation = IMAGENET
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns the features at TAPS of images float (B, 3, h, w) in [-1, 1].

        They are of unit length along the channels.
        """
        # From [-1, 1] to what VGG16 was trained on.
        x = ((images + 1) / 2 - self.mean) / self.deviation
        taps = []
        for number, layer in enumerate(self.layers):
            x = layer(x)  # the ReLUs are in place, the copies of the taps are not touched
            if number in TAPS:
                taps.append(F.normalize(x.float(), dim=1))
        return taps

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """Returns the mean over the taps of the mean squared distance of the features, 0 … 2."""
        with torch.no_grad():
            wanted = self.features(originals)
        found = self.features(images)
        distances = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean()
