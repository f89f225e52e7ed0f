"""The whole configuration of one run, as a frozen tree. No torch in here: a config can be read, checked and hashed in milliseconds.

Every value of the experiment is fingerprinted; `machine` (devices, folders, log frequency) never is.
Steps and images are counted in integers, training length in epochs of the training split, layers are 1-based ("layer 8" is the
residual stream after the 8th block) and may be written as a fraction of the depth ("8/12"), so that an arm means the same at every size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mirai_bench.config.foresight import Foresight, resolve_layer
from mirai_bench.config.protocol import Protocol
from mirai_bench.config.sections import Positive, Rate, Section
from mirai_bench.utils.hashing import digest, file_sha256

# Bumped when a change of the code changes the numbers of an unchanged config: older runs are then run again, never mixed in.
NUMERICS = 1


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
            raise ValueError(
                f"model.kv_heads is {self.kv_heads}, which does not divide model.heads = {self.heads}"
            )
        return self


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
    """of autocast; auto: bf16 on a GPU, or a CPU that has AMX or AVX-512 bf16, else fp32 (the record says which)"""
    max_bad_steps: Positive = 10
    """non-finite updates in a row, each skipped, before the run fails"""


class Evaluation(Section):
    at: tuple[Annotated[float, Field(gt=0)], ...]
    """epochs, increasing; the last is the end of training"""
    protocol: Protocol

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if not self.at or list(self.at) != sorted(set(self.at)):
            raise ValueError(
                f"evaluation.at is {list(self.at)}: write increasing epochs, for instance [5, 10, 20]"
            )
        return self


class Machine(Section):
    """Where and how it runs. Nothing here is in the fingerprint, and nothing here changes what is computed, beyond rounding and one thing:

    `micro_batches` and `workers` decide which forward pass a token is in, and so which dropout masks it draws (from the same
    distribution; without dropout the updates are the same). The record says how many there were.
    """

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
    compile: Literal["auto"] | bool = "auto"
    """torch.compile of model, teacher and losses; auto: on a GPU for widths from 768, where a run outweighs the minute or two it takes"""
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
            raise ValueError(
                f"evaluation.at ends at epoch {self.evaluation.at[-1]:g}, after train.epochs = {self.train.epochs}"
            )
        if self.train.batch_size % (self.machine.workers * self.machine.micro_batches):
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}, which machine.workers x machine.micro_batches = "
                f"{self.machine.workers} x {self.machine.micro_batches} does not divide"
            )
        if self.machine.workers > 1 and self.machine.gpus not in (0, self.machine.workers):
            raise ValueError(
                f"machine.gpus is {self.machine.gpus:g} with machine.workers = {self.machine.workers}: each process of several takes one "
                f"GPU, write gpus: {self.machine.workers}, or 0 on CPUs"
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


def ffn_width(width: int) -> int:
    """SwiGLU's hidden width: 8/3 of the width, rounded up to a multiple of 256 (below width 256: of 16), as LlamaGen does."""
    multiple = 256 if width >= 256 else 16
    return -(-int(8 * width / 3) // multiple) * multiple
