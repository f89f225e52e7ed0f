"""Means and deviations of RGB in 0…1, by which images are normalised for pretrained networks."""

from __future__ import annotations

Color = tuple[float, float, float]

# Mean and deviation of ImageNet's training images, as torchvision's models use them.
IMAGENET: tuple[Color, Color] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
