"""A small convolutional VQ for small colour images.

32x32 pixels become 8x8 codes (downsample 4) or 16x16 (downsample 2). The encoder puts 2x2 pixels
into channels, then has residual blocks, and a convolution of stride 2 for each further halving. The
decoder is its mirror image. The codebook is learned as a moving average of the rows that choose
each code (VQ-VAE, arXiv 1711.00937, appendix A.1). The codes and the rows may be of unit length, as
LlamaGen's are (ViT-VQGAN, arXiv 2110.04627). Letters: B batch; h, w pixels; H, W tokens; C channels;
Z code width; V codes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.tokenizers.network import ResBlock, from_uint8, to_uint8
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.tensors import load_foreign, read_tensors

DECODE_BATCH = 512  # images per forward pass of the decoder


# ---- the network


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResBlock(channels, channels, _norm) for _ in range(count)]


def build_encoder(downsample: int, channels: int, blocks: int, width: int) -> nn.Sequential:
    """Returns the encoder (B, 3, h, w) → (B, Z, H, W)."""
    # 2x2 pixels of 3 channels become 12 channels.
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, channels, 3, padding=1)]
    layers += _blocks(channels, blocks)
    while downsample > 2:
        layers.append(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1))
        channels *= 2
        downsample //= 2
        layers += _blocks(channels, blocks)
    return nn.Sequential(*layers, _norm(channels), nn.SiLU(), nn.Conv2d(channels, width, 1))


def build_decoder(downsample: int, channels: int, blocks: int, width: int) -> nn.Sequential:
    """Returns the decoder (B, Z, H, W) → (B, 3, h, w).

    Its last convolutions run at full size on few channels, so that cells of 2x2 pixels leave no
    pattern.
    """
    wide = channels * downsample // 2  # as many as the encoder ends with
    layers: list[nn.Module] = [nn.Conv2d(width, wide, 3, padding=1), *_blocks(wide, blocks)]
    while wide > channels:
        layers += [nn.Conv2d(wide, 2 * wide, 3, padding=1), nn.PixelShuffle(2)]
        wide //= 2
        layers += _blocks(wide, blocks)
    few = max(8, channels // 4)  # at full size
    layers += [_norm(channels), nn.SiLU(), nn.Conv2d(channels, 4 * few, 3, padding=1)]
    return nn.Sequential(*layers, nn.PixelShuffle(2), nn.SiLU(), nn.Conv2d(few, 3, 3, padding=1))


class SmallVQ(nn.Module):
    """The network: encoder, codebook and decoder."""

    codebook: Tensor
    """Codes (V, Z)."""

    def __init__(
        self,
        downsample: int,
        vocabulary: int,
        channels: int = 64,
        blocks: int = 2,
        width: int = 16,
        decoder_blocks: int = 0,
        normalised: bool = False,
    ) -> None:
        """The defaults of the last two are what weight files that do not name them were made with.

        `decoder_blocks` 0 means as many as `blocks`; `normalised` gives rows and codes unit length.
        """
        super().__init__()
        self.sizes = {
            "downsample": downsample,
            "vocabulary": vocabulary,
            "channels": channels,
            "blocks": blocks,
            "width": width,
            "decoder_blocks": decoder_blocks,
            "normalised": normalised,
        }
        self.normalised = normalised
        self.encoder = build_encoder(downsample, channels, blocks, width)
        self.decoder = build_decoder(downsample, channels, decoder_blocks or blocks, width)
        self.register_buffer("codebook", torch.zeros(vocabulary, width))

    def nearest(self, z: Tensor) -> Tensor:
        """Returns the nearest code long (n,) of each row (n, Z).

        It is the argmin over v of |z - e_v|². The |z|² that all codes share is left out.
        """
        e = self.codebook
        return ((e * e).sum(1) - 2 * z.float() @ e.T).argmin(1)

    def rows(self, images: Tensor) -> Tensor:
        """Returns rows (B·H·W, Z), in raster order, of images float (B, 3, h, w)."""
        rows = self.encoder(images).permute(0, 2, 3, 1).flatten(0, 2)
        return F.normalize(rows.float(), dim=1) if self.normalised else rows

    def images(self, rows: Tensor, batch: int) -> Tensor:
        """Returns images float (B, 3, h, w) of the rows (B·H·W, Z) of `batch` square grids."""
        side = round((len(rows) // batch) ** 0.5)
        return self.decoder(rows.unflatten(0, (batch, side, side)).permute(0, 3, 1, 2))


# ---- the tokenizer


class VQSmall:
    """The frozen tokenizer around a trained network."""

    exact = False

    def __init__(self, model: SmallVQ, sha256: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = model.sizes["vocabulary"]
        self.downsample = model.sizes["downsample"]
        self.identity = {"name": "vq_small", "sha256": sha256}
        self.codebook = model.codebook

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes long (B, T) of images uint8 (B, h, w, 3)."""
        rows = self.model.rows(from_uint8(images))
        return self.model.nearest(rows).view(len(images), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images uint8 (B, h, w, 3) of codes long (B, T)."""
        parts = []
        for part in codes.split(DECODE_BATCH):
            rows = self.model.codebook[part.flatten()]
            parts.append(to_uint8(self.model.images(rows, len(part))))
        return torch.cat(parts)

    def vectors(self) -> Tensor:
        """Returns the codes (V, Z)."""
        return self.model.codebook


def read_model(path: Path) -> SmallVQ:
    """Returns the network of a weight file of `mirai_bench.tokenizer train`.

    The file holds the tensors (fp16 or fp32) and, in its metadata, the sizes of the network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            sizes = json.loads((file.metadata() or {})["sizes"])
            if max(sizes.get("blocks", 0), sizes.get("decoder_blocks", 0)) > len(file.keys()):
                raise ValueError(f"sizes are {sizes}")
        with torch.device("meta"):  # the weights are assigned: sizes alone take no memory
            model = SmallVQ(**sizes)
    except (
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ValueError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{path} is not a weight file of `python -m mirai_bench.tokenizer train`: {error}"
        ) from None
    what = "a weight file of a tokenizer of these sizes"
    load_foreign(model, read_tensors(path), path, what, assign=True)
    return model.float()


def weight_file(config: RunConfig) -> Path:
    """Returns the weight file of a configuration, by default the one that ships for its data and grid.

    Raises UserError if there is none.
    """
    path = config.tokenizer_file
    if path is None:
        size = config.data.image_size
        raise UserError(
            f"No vq_small weights ship for {config.data.title} of {size} pixels with down-sampling "
            f"{config.tokenizer.downsample}: make them with `python -m mirai_bench.tokenizer train`, "
            "then write tokenizer.weights: PATH"
        )
    return path


def identity(config: RunConfig) -> dict[str, str]:
    """Returns the identity of the tokenizer of a configuration."""
    return {"name": "vq_small", "sha256": file_sha256(weight_file(config))}


def load(config: RunConfig, device: torch.device) -> VQSmall:
    """Returns the tokenizer. Raises UserError if the weights are of other sizes."""
    path = weight_file(config)
    model = read_model(path)
    tokenizer = config.tokenizer
    for name, value in (("downsample", tokenizer.downsample), ("vocabulary", tokenizer.vocabulary)):
        size = model.sizes[name]
        if size != value:
            raise UserError(f"tokenizer.{name} is {value}, but {path.name} has {size}: write {name}: {size}")
    return VQSmall(model.to(device), file_sha256(path))
