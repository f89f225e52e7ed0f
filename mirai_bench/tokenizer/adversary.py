"""The adversarial term of vq_small's training: a discriminator that tells images from decoded ones.

It judges patches (VQGAN, arXiv 2012.09841) with the hinge loss, and its layers are spectrally
normalised (arXiv 1802.05957). Its gradient is balanced against that of the other losses at the
decoder's last layer, as VQGAN's is, so that its weight means the same for every network and data set.
Letters: B batch; h, w pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.tokenizer.recipe import Recipe

RAMP = 0.05  # fraction of training over which the adversarial gradient grows to its full length
MAX_RATIO = 10.0  # of the lengths of the two gradients, so that a tiny one is not blown up


class SpectralConv(nn.Conv2d):
    """A convolution whose weight matrix is divided by its largest singular value."""

    left: Tensor
    """The left singular vector (out,), by one power iteration per training step."""

    def __init__(self, channels: int, out: int, size: int, stride: int) -> None:
        super().__init__(channels, out, size, stride, padding=1)
        self.register_buffer("left", F.normalize(torch.randn(out), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) → (B, out, h', w')."""
        with torch.autocast(x.device.type, enabled=False):  # in bf16 the iteration would not settle
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                right = F.normalize(matrix.T @ self.left, dim=0)
                if self.training:
                    self.left.copy_(F.normalize(matrix @ right, dim=0))
                left = self.left.clone()  # the backward pass needs it as it is now
            weight = self.weight / torch.dot(left, matrix @ right)
        return self._conv_forward(x, weight, self.bias)


class Discriminator(nn.Sequential):
    """Images float (B, 3, h, w) → one value for each overlapping patch (B, 1, h / 4, w / 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            SpectralConv(3, channels, 4, 2),
            nn.LeakyReLU(0.2),
            SpectralConv(channels, 2 * channels, 4, 2),
            nn.LeakyReLU(0.2),
            SpectralConv(2 * channels, 4 * channels, 3, 1),
            nn.LeakyReLU(0.2),
            SpectralConv(4 * channels, 1, 3, 1),
        )


def length_ratio(decoded: Tensor, last: Tensor, others: Tensor, gradient: Tensor) -> Tensor:
    """Returns |dL/dw| / |dA/dw| at the weights w of the decoder's last layer, at most MAX_RATIO.

    `others` is dL/dx and `gradient` dA/dx at the decoded images x (B, 3, h, w). At the images the
    lengths would mislead: gradients that agree over a batch move the weights more than others do.
    """
    lengths = []
    for each in (others, gradient):
        (at_weights,) = torch.autograd.grad(decoded, last, each, retain_graph=True)
        lengths.append(at_weights.float().norm())
    return (lengths[0] / lengths[1].clamp_min(1e-12)).clamp_max(MAX_RATIO)


class Adversary:
    """The discriminator and its optimizer."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.network = Discriminator(recipe.discriminator_channels)
        self.network.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            recipe.discriminator_lr,
            (0.5, 0.9),
            weight_decay=0.0,
            fused=device.type == "cuda",
        )

    def weight(self, progress: float) -> float:
        """Returns the length of the adversarial gradient, as a share of the other losses'."""
        return self.recipe.adversarial * min(1.0, (progress - self.recipe.adversarial_from) / RAMP)

    def gradient(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the adversarial loss of decoded images (B, 3, h, w), and its gradient there."""
        self.network.eval()  # its power iteration is for its own step
        loss = -self.network(decoded).float().mean()
        (gradient,) = torch.autograd.grad(loss, decoded)
        return loss.detach(), gradient

    def loss(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Returns the hinge loss of the discriminator on as many images as decoded ones (B, 3, h, w)."""
        self.network.train()
        real, fake = self.network(torch.cat([images, decoded.to(images.dtype)])).float().chunk(2)
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2

    def update(self, loss: Tensor, lr: float) -> None:
        """Moves the discriminator's weights down the gradient of its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training needs."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
