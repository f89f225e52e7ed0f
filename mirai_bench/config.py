"""The whole configuration of one run, as a frozen tree. No torch in here: a config can be read, checked and hashed in milliseconds.

Everything that can change a number is fingerprinted; `machine` (devices, folders, log frequency) never is.
Steps and images are counted in integers, training length in epochs of the training split, layers are 1-based ("layer 8" is the
residual stream after the 8th block) and may be written as a fraction of the depth ("8/12"), so that an arm means the same at every size.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .hashing import digest, file_sha256
from .protocol import Protocol

# Bumped when a change of the code changes the numbers of an unchanged config: older runs are then run again, never mixed in.
NUMERICS = 1

Layer = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[1-9]\d{0,2}/[1-9]\d{0,2}$")]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def resolve_layer(layer: int | str, depth: int) -> int:
    """1-based block index of `layer` in a model of `depth` blocks; "8/12" of 3 blocks is 2. Raises ValueError outside 1…depth."""
    index = max(1, round(Fraction(layer) * depth)) if isinstance(layer, str) else layer
    if not 1 <= index <= depth or (isinstance(layer, str) and Fraction(layer) > 1):
        raise ValueError(
            f"layer {layer!r} is outside the model, which has {depth} blocks: write 1 to {depth}, or a fraction such as '8/12'"
        )
    return index


# name: (depth, width, heads); B to 3B are LlamaGen's (arXiv 2406.06525, table 1), the small ones are ours.
MODEL_SIZES = {
    "nano": (3, 64, 4), "tiny": (6, 256, 4), "small": (8, 384, 6),
    "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (36, 1280, 20), "XXL": (48, 1536, 24), "3B": (24, 3200, 32),
}  # fmt: skip


class Data(Section):
    dataset: Literal["digits", "cifar10", "folder"] = "digits"
    """`digits` is embedded; `cifar10` and `folder` (class/image, ImageNet's layout) are prepared once by `mirai_bench.data.prepare`"""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "folder"
    """folder: what the data set is called, so that runs on two of them are two experiments"""
    image_size: Positive = 8
    """pixels a side after cropping"""
    classes: Positive = 10
    views: Literal["center", "flip", "ten_crop"] = "center"
    """stored views of an image: 1, 2 (centre and its mirror image) or 10 (LlamaGen's five crops and their mirror images)"""
    crop_ranges: tuple[Annotated[float, Field(ge=1, le=2)], ...] = (1.1,)
    """ten_crop: the image is first resized and centre-cropped to range x image_size; each further range adds ten views"""

    @property
    def num_views(self) -> int:
        return {"center": 1, "flip": 2, "ten_crop": 10 * len(self.crop_ranges)}[self.views]


class Tokenizer(Section):
    name: Literal["pixel", "vq_small", "vq16"] = "pixel"
    downsample: Positive = 1
    """pixels a token covers along each side"""
    vocabulary: Annotated[int, Field(ge=2, le=65536)] = 17
    """number of codes V; codes are stored as uint16"""
    weights: Path | None = None
    """weight file; by default the one that ships with the project, if any"""


class Model(Section):
    size: str = "nano"
    depth: Positive
    width: Positive
    heads: Positive
    kv_heads: Positive
    """fewer than heads: grouped-query attention"""
    token_dropout: Rate = 0.1
    residual_dropout: Rate = 0.1
    ffn_dropout: Rate = 0.1
    class_dropout: Rate = 0.1
    """probability of the null class, which classifier-free guidance needs"""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        size = data.get("size", "nano")
        if not isinstance(size, str) or size not in MODEL_SIZES:
            raise ValueError(f"model.size is {size!r}, which is not one of {', '.join(MODEL_SIZES)}")
        filled = dict(zip(("depth", "width", "heads"), MODEL_SIZES[size], strict=True)) | data
        return {"kv_heads": filled["heads"]} | filled

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"model.width is {self.width} with {self.heads} heads: 2-D RoPE needs a head width (width / heads) that is a multiple of 4"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"model.kv_heads is {self.kv_heads}, which does not divide model.heads = {self.heads}")
        return self


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
            raise ValueError("foresight.encoder.cache is true with name: masked_tokens, which reads no pixels: write cache: false")
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
            drop |= {"source", "layer", "teacher_layer", "projector", "pairing", "class_token", "share_label_drop", "target_norm"}
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
            fields["encoder"] = {key: fields["encoder"][key] for key in ("name", "weights", "context", "cache")}
        if (
            self.level == "output"
            or (self.source not in ("frozen", "random")
            and not self.uses_encoder)
            or self.teacher is not None
        ):
            drop |= {"teacher_seed"}
        if not self.explicit:
            drop |= {"teacher_layer", "share_label_drop"}
        if self.level == "output" or self.source != "frozen":
            drop |= {"teacher"}
        return {key: value for key, value in fields.items() if key not in drop}


class Train(Section):
    epochs: Positive
    batch_size: Positive
    """global: over all processes and micro-batches"""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """to zero at the end, after lr_warmup; the paper keeps it constant"""
    lr_warmup: Rate = 0.0
    """fraction of training with a linear rise from zero"""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """on matrices (two or more dimensions), embeddings and projectors included"""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """largest global gradient norm"""
    ema_decay: Rate = 0.9999
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """of autocast; auto: bf16 on a GPU, or a CPU that has AMX, else fp32 (the record says which)"""
    max_bad_steps: Positive = 10
    """non-finite updates in a row, each skipped, before the run fails"""


class Evaluation(Section):
    at: tuple[Annotated[float, Field(gt=0)], ...]
    """epochs, increasing; the last is the end of training"""
    protocol: Protocol

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if not self.at or list(self.at) != sorted(set(self.at)):
            raise ValueError(f"evaluation.at is {list(self.at)}: write increasing epochs, for instance [5, 10, 20]")
        return self


class Machine(Section):
    """Where and how it runs. Nothing here changes a number (beyond rounding), nothing here is in the fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive = 1
    runs: Path = Path("runs")
    """folder of runs, caches and prepared codes"""
    data: Path | None = None
    """folder or file of the images"""
    codes: Path | None = None
    """folder of prepared codes; by default the one of this data and tokenizer in `runs`"""
    assets: Path | None = None
    """folder of downloaded weights and reference files for the evaluation; by default $MIRAI_BENCH_ASSETS"""
    log_every: Positive = 10
    """steps"""
    checkpoint_every: Annotated[float, Field(gt=0)] = 1.0
    """epochs"""
    keep_checkpoints: Positive = 2
    compile: bool = False
    micro_batches: Positive = 1
    """parts in which a process computes its share of the batch, one after the other, to save memory"""
    cpus: Positive = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    """of one trial: 0.25 packs four on one GPU"""
    workers: Positive = 1
    """processes of one trial, data-parallel"""


class RunConfig(Section):
    profile: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")] = "custom"
    """names files and rows, never a number"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model
    foresight: Foresight = Foresight()
    train: Train
    evaluation: Evaluation
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.data.image_size % self.tokenizer.downsample:
            raise ValueError(
                f"data.image_size is {self.data.image_size}, not a multiple of tokenizer.downsample = {self.tokenizer.downsample}"
            )
        f, (height, width) = self.foresight, self.grid
        if f.level != "none":
            if f.k > height * width:
                raise ValueError(
                    f"foresight.k is {f.k}, but the token grid has {height}x{width} = {height * width} cells: write k: {height * width} or less"
                )
            for layer in filter(None, (f.layer, f.teacher_layer)):
                resolve_layer(layer, self.model.depth)
        for name, path in (
            ("tokenizer.weights", self.tokenizer.weights),
            ("foresight.teacher", f.teacher),
            ("foresight.encoder.weights", f.encoder.weights),
        ):
            if path is not None and not path.exists():
                raise ValueError(
                    f"{name} is {str(path)!r}, which does not exist: write the path of a file, or leave it out to use the project's own"
                )
        if self.evaluation.at[-1] > self.train.epochs:
            raise ValueError(f"evaluation.at ends at epoch {self.evaluation.at[-1]:g}, after train.epochs = {self.train.epochs}")
        if self.train.batch_size % (self.machine.workers * self.machine.micro_batches):
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}, which machine.workers x machine.micro_batches = "
                f"{self.machine.workers} x {self.machine.micro_batches} does not divide"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) in tokens."""
        side = self.data.image_size // self.tokenizer.downsample
        return side, side

    def identity(self) -> dict[str, Any]:
        """Every value that can change a number, and nothing else; a file stands as its content's sha256, never as its path."""
        fields = self.model_dump(mode="json", exclude={"machine", "profile"})
        fields["foresight"] = self.foresight.relevant()
        fields["model"].pop("size")
        if self.data.views != "ten_crop":
            fields["data"].pop("crop_ranges")
        if self.data.dataset != "folder":
            fields["data"].pop("name")
        fields["evaluation"]["protocol"].pop("name")
        for holder, key in (
            (fields["tokenizer"], "weights"),
            (fields["foresight"], "teacher"),
            (fields["foresight"].get("encoder", {}), "weights"),
        ):
            if holder.get(key) is not None:
                holder[key] = file_sha256(holder[key])
        return {"numerics": NUMERICS} | fields

    def fingerprint(self) -> str:
        return digest(self.identity())
