"""An evaluation protocol: everything that decides what a number of the evaluation means, as one named and hashed object. No torch in here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mirai_bench.utils.hashing import digest


class Protocol(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    name: str
    num_samples: Annotated[int, Field(ge=2)]
    class_rule: Literal["balanced", "uniform"] = "balanced"
    """class of sample i: i mod classes, or drawn uniformly by (seed, i) as the paper does"""
    seed: Annotated[int, Field(ge=0)] = 0
    """sample i is a function of (seed, i) alone"""
    cfg_scale: Annotated[float, Field(ge=0)] = 1.0
    """uncond + s·(cond - uncond) on every token; 1 is no guidance"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """0: all codes"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    weights: Literal["ema", "raw"] = "ema"
    extractor: str = "digits"
    """entry of evaluate.EXTRACTORS"""
    reference: str = "train"
    """`train` or `heldout` split of the run's own data, or an .npz or folder of images"""
    resize: Annotated[int, Field(ge=0)] = 0
    """side in pixels to which samples are resized (bicubic, antialiased) before the extractor; 0: as they are"""

    def digest(self) -> str:
        """12 hexadecimal digits of everything but the name."""
        return digest(self.model_dump(mode="json", exclude={"name"}))


# The paper's (50,000 samples, uniform random classes, CFG 2.0 for B and L, 1.75 for XL, EMA weights, ADM reference batch),
# CIFAR-10's with the 2015 Inception, and the embedded digits'.
ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz"


PAPER = {
    "num_samples": 50_000,
    "class_rule": "uniform",
    "cfg_scale": 2.0,
    "extractor": "inception",
    "reference": ADM_REFERENCE,
}


PROTOCOLS = {
    "paper": PAPER,
    "paper_xl": PAPER | {"cfg_scale": 1.75},
    "cifar10_10k": {
        "num_samples": 10_000,
        "cfg_scale": 1.5,
        "extractor": "inception_2015",
        "reference": "train",
    },
    "digits": {"num_samples": 1_000, "cfg_scale": 1.0, "extractor": "digits", "reference": "train"},
}
