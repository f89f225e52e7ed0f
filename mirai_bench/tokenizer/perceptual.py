"""Distance of two images in the feature space of VGG16 (as LPIPS, arXiv 1801.03924, without its learned channel weights)."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.utils.errors import UserError

# torchvision's VGG16 .features up to relu3_3: convolutions, poolings, and the ReLUs whose output is compared.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14)


POOLINGS = (4, 9)


TAPS = (3, 8, 15)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Perceptual(nn.Module):
    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.weights = nn.ParameterList([state[f"{i}.weight"] for i in CONVOLUTIONS])
            self.biases = nn.ParameterList([state[f"{i}.bias"] for i in CONVOLUTIONS])
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a state dict of torchvision's VGG16 .features: {error}") from None
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """float (B, 3, h, w) in [-1, 1] → features at TAPS, of unit length along the channels."""
        x, taps, done = ((images + 1) / 2 - self.mean) / self.std, [], 0
        for layer in range(TAPS[-1] + 1):
            if layer in CONVOLUTIONS:
                x = F.conv2d(x, self.weights[done], self.biases[done], padding=1)
                done += 1
            elif layer in POOLINGS:
                x = F.max_pool2d(x, 2)
            else:
                x = F.relu(x)
            if layer in TAPS:
                taps.append(F.normalize(x.float(), dim=1))
        return taps

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """Mean over the taps of the mean squared distance of the unit features; 0 … 2."""
        with torch.no_grad():
            wanted = self.features(originals)
        found = self.features(images)
        distances = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean()
