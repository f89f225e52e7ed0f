"""A small convolutional VQ for small colour images: 32x32 pixels → 8x8 codes (down-sampling 4) or 16x16 (down-sampling 2).

Encoder: 2x2 pixels into channels, residual blocks, and a stride-2 convolution for each further halving. Decoder: its mirror image.
Codebook: nearest neighbour, learned as a moving average of what it is chosen for (VQ-VAE, arXiv 1711.00937, appendix A.1).
Letters: B batch, h, w pixels, H, W tokens, C channels, Z code width, V codes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.config import run_config as settings
from mirai_bench.data.tokenizers.convert import from_uint8, to_uint8
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256

SHIPPED = Path(__file__).parent / "weights"


DECODE_BATCH = 512


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [Residual(channels) for _ in range(count)]


def build_encoder(downsample: int, channels: int, blocks: int, width: int) -> nn.Sequential:
    """(B, 3, h, w) → (B, Z, H, W)."""
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, channels, 3, padding=1),
        *_blocks(channels, blocks),
    ]
    while downsample > 2:
        layers += [nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), *_blocks(2 * channels, blocks)]
        channels, downsample = 2 * channels, downsample // 2
    return nn.Sequential(*layers, nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, width, 1))


def build_decoder(downsample: int, channels: int, blocks: int, width: int) -> nn.Sequential:
    """(B, Z, H, W) → (B, 3, h, w). The last convolutions run at full size on few channels, so that 2x2 cells leave no pattern."""
    wide = channels * downsample // 2
    layers: list[nn.Module] = [nn.Conv2d(width, wide, 3, padding=1), *_blocks(wide, blocks)]
    while wide > channels:
        layers += [nn.Conv2d(wide, 2 * wide, 3, padding=1), nn.PixelShuffle(2), *_blocks(wide // 2, blocks)]
        wide //= 2
    few = max(8, channels // 4)
    layers += [
        nn.GroupNorm(8, channels),
        nn.SiLU(),
        nn.Conv2d(channels, 4 * few, 3, padding=1),
        nn.PixelShuffle(2),
    ]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(few, 3, 3, padding=1))


class SmallVQ(nn.Module):
    def __init__(
        self, downsample: int, vocabulary: int, channels: int = 64, blocks: int = 2, width: int = 16
    ) -> None:
        super().__init__()
        self.sizes = {
            "downsample": downsample,
            "vocabulary": vocabulary,
            "channels": channels,
            "blocks": blocks,
            "width": width,
        }
        self.encoder = build_encoder(downsample, channels, blocks, width)
        self.decoder = build_decoder(downsample, channels, blocks, width)
        self.register_buffer("codebook", torch.zeros(vocabulary, width))
        self.codebook: Tensor

    def nearest(self, z: Tensor) -> Tensor:
        """(n, Z) → (n,) long: argmin over v of |z - e_v|², with the |z|² that all share left out."""
        e = self.codebook
        return ((e * e).sum(1) - 2 * z.float() @ e.T).argmin(1)

    def rows(self, images: Tensor) -> Tensor:
        """float (B, 3, h, w) → (B·H·W, Z), raster order."""
        return self.encoder(images).permute(0, 2, 3, 1).flatten(0, 2)

    def images(self, rows: Tensor, batch: int) -> Tensor:
        """(B·H·W, Z) of square grids → float (B, 3, h, w)."""
        side = round((len(rows) // batch) ** 0.5)
        return self.decoder(rows.unflatten(0, (batch, side, side)).permute(0, 3, 1, 2))


class VQSmall:
    """The frozen tokenizer around a trained SmallVQ."""

    def __init__(self, model: SmallVQ, sha256: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary, self.downsample = model.sizes["vocabulary"], model.sizes["downsample"]
        self.identity = {"name": "vq_small", "sha256": sha256}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        rows = self.model.rows(from_uint8(images))
        return self.model.nearest(rows).view(len(images), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        parts = [
            to_uint8(self.model.images(self.model.codebook[part.flatten()], len(part)))
            for part in codes.split(DECODE_BATCH)
        ]
        return torch.cat(parts)


def read_model(path: Path) -> SmallVQ:
    """A weight file of `mirai_bench.tokenizer train`: tensors (fp16 or fp32) and, in the file's metadata, the model's sizes."""
    try:
        with safe_open(path, framework="pt") as file:
            model = SmallVQ(**json.loads((file.metadata() or {})["sizes"]))
            model.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118 (not a dictionary)
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{path} is not a weight file of `python -m mirai_bench.tokenizer train`: {error}"
        ) from None
    return model


def weight_file(config: settings.Tokenizer) -> Path:
    side = 32 // config.downsample
    path = config.weights or SHIPPED / f"vq_small_cifar10_{side}x{side}.safetensors"
    if not path.is_file():
        raise UserError(
            f"No vq_small weights ship for down-sampling {config.downsample}: make them with "
            "`python -m mirai_bench.tokenizer train`, then write tokenizer.weights: PATH"
        )
    return path


def identity(config: settings.Tokenizer) -> dict[str, str]:
    return {"name": "vq_small", "sha256": file_sha256(weight_file(config))}


def load(config: settings.Tokenizer, device: torch.device) -> VQSmall:
    path = weight_file(config)
    model = read_model(path)
    for name, value in (("downsample", config.downsample), ("vocabulary", config.vocabulary)):
        if model.sizes[name] != value:
            raise UserError(
                f"tokenizer.{name} is {value}, but {path.name} has {model.sizes[name]}: write {name}: {model.sizes[name]}"
            )
    return VQSmall(model.to(device), file_sha256(path))
