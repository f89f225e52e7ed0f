"""What every part of a configuration is made of, and the part that the project is about: one value of each axis of foresight."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mirai_bench.config.sections import Fraction01, Positive, Rate, Section

Layer = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[1-9]\d{0,2}/[1-9]\d{0,2}$")]


def resolve_layer(layer: int | str, depth: int) -> int:
    """1-based block index of `layer` in a model of `depth` blocks; "8/12" of 3 blocks is 2. Raises ValueError outside 1…depth."""
    index = max(1, round(Fraction(layer) * depth)) if isinstance(layer, str) else layer
    if not 1 <= index <= depth or (isinstance(layer, str) and Fraction(layer) > 1):
        raise ValueError(
            f"layer {layer!r} is outside the model, which has {depth} blocks: write 1 to {depth}, or a fraction such as '8/12'"
        )
    return index


class Projector(Section):
    """Maps h (width D) to the target's width Z: Linear, SiLU, …, Linear (paper: 3 layers, hidden 2048)."""

    layers: Annotated[int, Field(ge=1, le=8)] = 3
    hidden: Positive = 2048
    shared_trunk: bool = False
    """one trunk for all K heads and a last layer for each, instead of K separate projectors"""


class BlockCausal(Section):
    block_causal: Positive
    """cell i sees the cells of its own block of this many (in raster order) and of the earlier blocks"""


class Encoder(Section):
    name: str = "masked_tokens"
    """`masked_tokens` (built in, trained on the same codes), `efficientnet_lite0`, an entry of timm such as `dinov2_b`, or `timm:<model>`"""
    weights: Path | None = None
    """weight file; by default the entry's own (built in: trained once and cached; timm: from the hub)"""
    context: Literal["full"] | BlockCausal = "full"
    cache: bool = False
    """image encoders: compute the features of all views once and keep them, in half precision, in `runs`; for small data sets"""
    depth: Positive = 3
    """masked_tokens: blocks; its width and heads are the student's"""
    epochs: Positive = 30
    """masked_tokens: training length"""

    @model_validator(mode="after")
    def _check(self) -> Encoder:
        if self.cache and self.name == "masked_tokens":
            raise ValueError(
                "foresight.encoder.cache is true with name: masked_tokens, which reads no pixels: write cache: false"
            )
        return self


class Foresight(Section):
    """One value of each axis, and everything the paper fixes or leaves open."""

    level: Literal["none", "output", "internal"] = "none"
    layout: Literal["raster_1d", "grid_2d", "grid_2d_flat"] = "grid_2d"
    source: Literal["ema", "frozen", "encoder", "random", "shuffled"] = "ema"
    k: Positive = 3
    """foresight cells per state, the nearest first; k = 1 is the state's own cell"""
    layer: Layer = "8/12"
    """student: the residual stream after this block, no final norm"""
    teacher_layer: Layer | None = None
    """ema, frozen: the teacher's block; by default the student's"""
    weight: Annotated[float, Field(ge=0)] = 2.0
    """λ of L = NTP + λ·foresight"""
    schedule: Literal["constant", "step", "linear", "cosine"] = "constant"
    """how λ goes from weight to final_weight over training; step changes at step_at"""
    final_weight: Annotated[float, Field(ge=0)] = 1.0
    step_at: Fraction01 = 0.5
    warmup: Rate = 0.0
    """fraction of training before foresight is switched on (paper, Mirai-E: 15 of 300 epochs)"""
    reduce: Literal["mean", "sum"] = "mean"
    """over the K heads: the paper averages, the official code sums"""
    projector: Projector = Projector()
    pairing: Literal["consumed", "predicting"] = "consumed"
    """which state stands at cell i: the one that has consumed x_i (official code), or the one about to predict it (paper's formula)"""
    class_token: bool = False
    """ema, frozen: also match the class-token state, in every head (official Mirai-E)"""
    share_label_drop: bool = True
    """ema, frozen: the teacher sees the null class where the student does (official code: false)"""
    target_norm: Literal["none", "layer_norm", "center"] = "none"
    """of the target before the cosine: as it is, LayerNorm without affine, or minus the batch mean"""
    teacher: Path | None = None
    """frozen: a checkpoint folder or file; by default the finished baseline run of this profile with teacher_seed"""
    teacher_seed: Annotated[int, Field(ge=0)] = 0
    """frozen, encoder: seed of the teacher that the project trains; random: seed of its weights"""
    shuffled_of: Literal["encoder", "ema"] = "encoder"
    """shuffled: whose features are given to the wrong image"""
    encoder: Encoder = Encoder()

    @model_validator(mode="after")
    def _check(self) -> Foresight:
        if self.level == "output" and self.k < 2:
            raise ValueError(
                "foresight.k is 1 with level: output, which adds no head to next-token prediction: write k: 2 or more"
            )
        if self.class_token and self.pairing == "predicting":
            raise ValueError(
                "foresight.class_token is true with pairing: predicting, where the class state already stands at cell 0: write pairing: consumed"
            )
        if self.class_token and self.level == "internal" and not self.explicit:
            raise ValueError(
                f"foresight.class_token is true, but source: {self.source} has no class-token state: write class_token: false or source: ema"
            )
        return self

    @property
    def explicit(self) -> bool:
        """The target is the state of a causal model of the student's shape, not a bidirectional encoder's feature."""
        return self.source in ("ema", "frozen") or (self.source == "shuffled" and self.shuffled_of == "ema")

    @property
    def uses_encoder(self) -> bool:
        return self.level == "internal" and (
            self.source == "encoder" or (self.source == "shuffled" and self.shuffled_of == "encoder")
        )

    def relevant(self) -> dict[str, Any]:
        """The fields that can change a number, for the fingerprint: two spellings of one experiment are one experiment."""
        fields = self.model_dump(mode="json")
        drop: set[str] = set()
        if self.level == "none":
            return {"level": "none"}
        if self.level == "output":
            drop |= {
                "source",
                "layer",
                "teacher_layer",
                "projector",
                "pairing",
                "class_token",
                "share_label_drop",
                "target_norm",
            }
        if self.schedule == "constant":
            drop |= {"final_weight"}
        if self.schedule != "step":
            drop |= {"step_at"}
        if self.k == 1:
            drop |= {"reduce"}
        if self.source != "shuffled" or self.level == "output":
            drop |= {"shuffled_of"}
        if not self.uses_encoder:
            drop |= {"encoder"}
        elif self.encoder.name != "masked_tokens":
            fields["encoder"] = {
                key: fields["encoder"][key] for key in ("name", "weights", "context", "cache")
            }
        if (
            self.level == "output"
            or (self.source not in ("frozen", "random") and not self.uses_encoder)
            or self.teacher is not None
        ):
            drop |= {"teacher_seed"}
        if not self.explicit:
            drop |= {"teacher_layer", "share_label_drop"}
        if self.level == "output" or self.source != "frozen":
            drop |= {"teacher"}
        return {key: value for key, value in fields.items() if key not in drop}
