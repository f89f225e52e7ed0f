"""The distance of two images in the feature space of VGG16.

It is LPIPS (arXiv 1801.03924) without its learned weights of the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.data.images.colors import IMAGENET
from mirai_bench.data.images.vgg16 import RELU1_2, RELU2_2, RELU3_3, build_layers

TAPS = (RELU1_2, RELU2_2, RELU3_3)  # the layers whose output is compared


class Perceptual(nn.Module):
    """The distance, with frozen weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Takes what `vgg16.read_weights` returned."""
        super().__init__()
        self.layers = build_layers()
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
