"""The image classifiers behind FD-cifar10 and FD-fashion, and behind class accuracy there.

One small residual network (He et al., arXiv 1512.03385), trained once per data set. Another machine
would train another one, so the weights ship with the package, and the sha256 of their file is part
of what an evaluation says about itself. Letters: B images of h x w pixels, C classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.datasets import Split, open_dataset
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import load_foreign, read_tensors

SHIPPED = Path(__file__).parent / "weights"

STEM = 32  # channels
# Channels and stride of each residual block. The last number of channels is the width of a feature:
# 128 is little enough for the covariance of 2,000 samples.
BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))


class Convolution(nn.Module):
    """A convolution and its batch normalisation."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inner, h, w) to (B, outer, h / stride, w / stride)."""
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """Multiplies the normalisation into the convolution, for inference."""
        assert isinstance(self.norm, nn.BatchNorm2d), "folded once"
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = Convolution(inner, outer, 3, stride)
        self.second = Convolution(outer, outer, 3)
        self.shortcut: nn.Module = nn.Identity()
        if (inner, stride) != (outer, 1):
            self.shortcut = Convolution(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inner, h, w) to (B, outer, h / stride, w / stride)."""
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class ImageClassifier(nn.Module):
    """Maps images to features and logits. Images may have any size; grey ones have equal channels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3)
        width = STEM
        blocks = []
        for channels, stride in BLOCKS:
            blocks.append(Block(width, channels, stride))
            width = channels
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (B, 3, h, w) of levels 0…255, of any type, to pool (B, 128) and logits (B, C)."""
        x = F.relu(self.stem(images.float() / 127.5 - 1))
        features = self.blocks(x).mean((2, 3))
        return {"pool": features, "logits": self.output(features)}

    def fold(self) -> None:
        """Multiplies every normalisation into its convolution, for inference."""
        for module in list(self.modules()):
            if isinstance(module, Convolution):
                module.fold()


def read_about(file: Path) -> dict[str, Any]:
    """Returns what a weight file says about itself: `dataset`, and the `sha256` of its training split.

    Raises UserError if it is no weight file of the command `classifier`.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return json.loads((opened.metadata() or {})["about"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{file} is not a weight file of `python -m mirai_bench.evaluate classifier`: {error}"
        ) from None


def load_image_classifier(file: Path) -> ImageClassifier:
    """Loads the weights of a file, which may be in fp16, into a network for inference in fp32."""
    tensors = read_tensors(file)
    bias = tensors.get("output.bias")
    model = ImageClassifier(bias.numel() if isinstance(bias, Tensor) else 1)
    load_foreign(model, tensors, file, "a weight file of an image classifier")
    model.eval().requires_grad_(False)
    model.fold()
    return model.to(memory_format=torch.channels_last)


def weight_name(dataset: str) -> str:
    """Returns the name of the weight file of a data set."""
    return f"{dataset}_classifier.safetensors"


def locate_classifier(dataset: str, config: RunConfig, weights: Path | None) -> Path:
    """Returns the weight file for a data set, which is the given path or the shipped one.

    Raises UserError if there is none, or if the data of the config are not what it was trained on.
    """
    data = config.data.dataset
    if data != dataset:
        raise UserError(
            f"protocol.extractor is {dataset}, but data.dataset is {data}: write another extractor, such "
            f"as inception_2015, or, to evaluate images, --config {dataset}"
        )
    file = weights or SHIPPED / weight_name(dataset)
    if not file.is_file():
        raise UserError(
            f"There is no file {file}: train a classifier with `python -m mirai_bench.evaluate "
            f"classifier {dataset} --set machine.data=PATH --out {file.parent}`"
        )
    about = read_about(file)
    if about["dataset"] != dataset:
        raise UserError(f"{file} was trained on {about['dataset']}: write the file of {dataset}")
    # Images that are compared with other images need no data of the config.
    if config.evaluation.protocol.reference in get_args(Split):
        found = open_dataset(config, "train").sha256
        if found != about["sha256"]:
            raise UserError(
                f"{file.name} was trained on {dataset} with sha256 {about['sha256']}, but machine.data has "
                f"{found}: write the path of the same images, or train a classifier on these with `python "
                "-m mirai_bench.evaluate classifier` and write --weights FILE"
            )
    return file
