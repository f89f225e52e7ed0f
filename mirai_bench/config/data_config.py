"""What a run learns from: the images, and the tokenizer that turns them into codes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mirai_bench.config.sections import Named, Positive, Section, Seed, UserPath


class StaircaseConfig(Section):
    """The planted data set: 5x5 bits, of which the last ones are parities of hidden ones."""

    parities: Annotated[int, Field(ge=2, le=5)] = 3
    """Number of planted cells P at the end of the image: the parities of P, P - 1, … 1 hidden \
cells."""
    draw: Seed = 0
    """Seed of the draw of the hidden cells."""
    cut: bool = False
    """Whether the last row of each image is that of another image, so that nothing can be \
foreseen."""
    images: Positive = 16_000
    """Number of training images."""


# Numbers of training and of held-out images of the data sets whose official files are read.
OFFICIAL_SIZES = {"cifar10": (50_000, 10_000), "fashion_mnist": (60_000, 10_000)}


# The built-in entries of DATASETS and TOKENIZERS of the room `data`. Plug-ins add others.
DATASET = Named("dataset", "digits", "cifar10", "fashion_mnist", "folder", "staircase")
TOKENIZER = Named("tokenizer", "pixel", "vq_small", "vq16")


class DataConfig(Section):
    """The images of a run."""

    dataset: Annotated[str, DATASET] = "digits"
    """The data set. `digits` is embedded and `staircase` (planted, a control) is generated; \
`cifar10`, `fashion_mnist` and `folder` (class/image, the layout of ImageNet) are prepared once by \
`mirai_bench.data.prepare`."""
    staircase: StaircaseConfig = StaircaseConfig()
    """Data set `staircase`: how it is generated."""
    # Names folders of prepared codes.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "folder"
    """Data set `folder`: what it is called, so that runs on two of them are two experiments."""
    subset: Positive | None = None
    """Data sets `cifar10` and `fashion_mnist`: number of training images, if `machine.data` holds a \
subset. Its runs are another experiment than those of the whole data set."""
    heldout_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Data set `folder`: share of the images that are held out, where there is no folder `val`. Which ones \
they are is a function of their contents."""
    image_size: Positive = 8
    """Side of the images in pixels, after cropping."""
    classes: Positive = 10
    """Number of classes."""
    views: Literal["center", "flip", "ten_crop"] = "center"
    """Stored views of an image: the centre crop, that and its mirror image, or LlamaGen's five \
crops and their mirror images."""
    crop_ranges: tuple[Annotated[float, Field(ge=1, le=2)], ...] = (1.1,)
    """Views `ten_crop`: the image is first resized and centre-cropped to range x image_size. Each \
further range adds ten views."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.subset is not None and self.dataset not in OFFICIAL_SIZES:
            raise ValueError(f"data.subset is {self.subset} with dataset: {self.dataset}: leave it out")
        if self.heldout_share is not None and self.dataset != "folder":
            raise ValueError(
                f"data.heldout_share is {self.heldout_share} with dataset: {self.dataset}, whose held-out "
                "images are fixed: leave it out"
            )
        return self

    @property
    def unused(self) -> set[str]:
        """Returns the fields that change no number, and that fingerprints therefore leave out."""
        matters = {
            "crop_ranges": self.views == "ten_crop",
            "subset": self.subset is not None,
            "heldout_share": self.heldout_share is not None,
            "name": self.dataset == "folder",
            "staircase": self.dataset == "staircase",
        }
        return {name for name, effect in matters.items() if not effect}

    @property
    def num_views(self) -> int:
        """Returns the number of stored views per image."""
        return {"center": 1, "flip": 2, "ten_crop": 10 * len(self.crop_ranges)}[self.views]

    @property
    def needs_preparation(self) -> bool:
        """Tells whether images are encoded once, before training, and not when they are used."""
        return self.dataset == "folder" or self.dataset in OFFICIAL_SIZES

    @property
    def title(self) -> str:
        """Returns what the data set is called: its own name, and that of a folder is `name`."""
        return self.name if self.dataset == "folder" else self.dataset


class TokenizerConfig(Section):
    """The frozen tokenizer that turns images into codes and back."""

    name: Annotated[str, TOKENIZER] = "pixel"
    """The tokenizer: `pixel` (one code per grey level), `vq_small` (the small VQ of this project) \
or `vq16` (LlamaGen's)."""
    downsample: Positive = 1
    """Number of pixels that a token covers along each side."""
    vocabulary: Annotated[int, Field(ge=2, le=65536)] = 17  # the grey levels 0…16 of the digits
    """Number of codes V. Codes are stored as uint16."""
    weights: UserPath | None = None
    """Weight file. By default the one that ships with the project, if there is one."""
