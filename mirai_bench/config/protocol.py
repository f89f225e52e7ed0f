"""An evaluation protocol: all that decides what the numbers of an evaluation mean, with a name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mirai_bench.config.sections import Amount, Count, Named, PositiveAmount, Section
from mirai_bench.utils.hashing import digest

# The built-in entries of EXTRACTORS in evaluate/extractors.py, and none. Plug-ins add others.
EXTRACTOR = Named(
    "extractor",
    *("none", "digits", "cifar10", "fashion_mnist", "own", "inception", "inception_2015", "dinov2"),
    listed=False,
)


class Protocol(Section):
    """How samples are drawn, and what they are compared with in which feature space."""

    name: str
    """What the protocol is called. The name is not part of its digest."""
    num_samples: Annotated[int, Field(ge=2, lt=2**31)]  # a covariance of features needs two
    """Number of images that are sampled."""
    class_rule: Literal["balanced", "uniform"] = "balanced"
    """Class of sample i: i mod classes, or drawn uniformly by (seed, i) as the paper does."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the samples. Sample i is a function of (seed, the run's `seeds.sampling`, i) only."""
    cfg_scale: Amount = 1.0
    """Scale s of classifier-free guidance, uncond + s · (cond - uncond) on every token. 1 is no \
guidance."""
    temperature: PositiveAmount = 1.0
    """Divisor of the logits before a token is drawn."""
    top_k: Count = 0
    """Number of the most probable codes that a token is drawn from. 0 means all codes."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass of the most probable codes that a token is drawn from (nucleus sampling)."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights sample: the EMA, or those of the last step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of sampling. Held-out losses and metrics are computed in fp32."""
    extractor: Annotated[str, EXTRACTOR] = "digits"
    """The feature extractor, an entry of EXTRACTORS in evaluate/extractors.py, or `none`: then the \
held-out loss is measured, and what a planted data set measures by itself."""
    reference: str = "train"
    """What samples are compared with: the `train` or `heldout` split of the run's data, or an \
.npz or a folder. Without an extractor they are compared with nothing."""
    resize: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side in pixels to which samples are resized (bicubic, antialiased) before the extractor. 0 \
means not at all."""

    def digest(self) -> str:
        """Returns 12 hexadecimal digits of the hash of every field but the name."""
        return digest(self.model_dump(mode="json", exclude={"name"}))


# Reference statistics of ImageNet-256 as published with ADM (arXiv 2105.05233).
ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
# The paper's protocol: 50,000 samples of uniformly drawn classes, EMA weights, CFG 2.0 for B and 1.75
# for L and XL.
PAPER: dict[str, Any] = {
    "num_samples": 50_000,
    "class_rule": "uniform",
    "cfg_scale": 2.0,
    "extractor": "inception",
    "reference": ADM_REFERENCE,
}
OWN: dict[str, Any] = {"cfg_scale": 1.0, "extractor": "own", "reference": "train"}
# Fields that are left out have their defaults. A changed value makes another protocol, whose
# results do not compare with earlier ones: give it a new name.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "paper_l": PAPER | {"cfg_scale": 1.75},
    "paper_xl": PAPER | {"cfg_scale": 1.75},
    "paper_384": PAPER | {"resize": 256},
    "cifar10_10k": {"num_samples": 10_000, "cfg_scale": 1.5, "extractor": "inception_2015"},
    "cifar10_2k": {"num_samples": 2_000, "cfg_scale": 1.0, "extractor": "cifar10", "reference": "train"},
    "fashion_mnist_2k": {
        "num_samples": 2_000,
        "cfg_scale": 1.0,
        "extractor": "fashion_mnist",
        "reference": "train",
    },
    "cifar10_5k_inception": {
        "num_samples": 5_000,
        "cfg_scale": 1.0,
        "extractor": "inception_2015",
        "reference": "train",
    },
    # In the features of a classifier of the user's own classes, trained on the spot. A reference has at least
    # as many images as are sampled.
    "own_100": OWN | {"num_samples": 100},
    "own_500": OWN | {"num_samples": 500},
    "own_2k": OWN | {"num_samples": 2_000},
    "own_10k": OWN | {"num_samples": 10_000},
    # The held-out loss alone. The samples are for the picture.
    "none": {"num_samples": 100, "extractor": "none"},
    "exact": {"num_samples": 1_000, "extractor": "none"},
    "digits": {"num_samples": 1_000, "cfg_scale": 1.0, "extractor": "digits", "reference": "train"},
}
