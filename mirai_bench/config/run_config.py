"""The configuration of one run: a frozen tree that is read, checked and hashed without torch.

Every value of the experiment is part of the fingerprint; `machine` (devices, folders, log
frequency) never is. Steps and images are counted in integers, and the length of training in epochs
of the training split. Layers are 1-based ("layer 8" is the residual stream after the 8th block) and
may be written as a fraction of the depth ("8/12"), so that an arm means the same at every model
size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from mirai_bench.config.data_config import DataConfig, TokenizerConfig
from mirai_bench.config.foresight import ForesightConfig, resolve_layer
from mirai_bench.config.machine_config import MachineConfig
from mirai_bench.config.model_config import ModelConfig
from mirai_bench.config.protocol import Protocol
from mirai_bench.config.regularizer import NoRegularizer, RegularizerConfig
from mirai_bench.config.sections import Amount, Name, Positive, PositiveAmount, Rate, Section, Seed
from mirai_bench.utils import plugins
from mirai_bench.utils.assets import LOCAL_FOLDERS
from mirai_bench.utils.hashing import digest, file_sha256

# Raised if a change of the code changes the numbers of an unchanged config. Runs of older code then
# count as other runs: they are trained again and never mixed with newer ones.
NUMERICS = 2

# Weights of tokenizers that the project trained, by the names of data set and grid.
SHIPPED_TOKENIZERS = Path(__file__).parents[1] / "data" / "tokenizers" / "weights"


class TrainConfig(Section):
    """How the model is trained."""

    recipe: str = "untuned"
    """Where the recipe comes from, as tables print it: `paper`, `untuned`, or the file of the search that \
found it. It is not fingerprinted."""
    epochs: Positive
    """Length of training in epochs of the training split."""
    batch_size: Positive
    """Global batch size in images, over all processes and micro-batches."""
    lr: PositiveAmount = 1e-4
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to zero after `lr_warmup`. The paper keeps it constant."""
    lr_warmup: Rate = 0.0
    """Fraction of training in which the learning rate rises linearly from zero."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)  # these and the next two as in LlamaGen and the paper
    """AdamW's decay rates of the two moments."""
    weight_decay: Amount = 0.05
    """Weight decay of matrices (two or more dimensions), embeddings and projectors included."""
    clip: PositiveAmount = 1.0
    """Largest global gradient norm."""
    ema_decay: Rate = 0.9999  # the EMA remembers about 1 / (1 - τ) = 10,000 steps
    """Decay τ of the exponential moving average of the weights, per step."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Precision of matrix products under autocast. `auto` is bf16 on a GPU, or on a CPU that has \
AMX or AVX-512 bf16, and fp32 elsewhere. The record says which it was."""
    max_bad_steps: Positive = 10
    """Number of consecutive non-finite updates after which the run fails. Each one is skipped."""


class EvaluationConfig(Section):
    """When the run is evaluated, and how."""

    at: tuple[PositiveAmount, ...]
    """Epochs at which the run is evaluated, in increasing order. The end of training is always \
evaluated, so that the list may be empty."""
    protocol: Protocol
    """The evaluation protocol: the name of one, or its own fields."""
    primary: str | None = None
    """Name of the metric that decides. By default the Fréchet distance of the extractor, and \
without an extractor the held-out loss. It is not fingerprinted."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        found = list(self.at)
        if found != sorted(set(found)):
            example = "write increasing epochs, for instance [5, 10, 20]"
            raise ValueError(f"evaluation.at is {found}: {example}")
        return self


class SeedsConfig(Section):
    """The seeds of the sources of randomness, where they are not the run's `seed`.

    With one of them varied and the others held, the spread of a metric is what this source adds.
    """

    init: Seed | None = None
    """Seed of the initial weights. By default `seed`."""
    order: Seed | None = None
    """Seed of the order of the data and of the views. By default `seed`."""
    dropout: Seed | None = None
    """Seed of dropout and of the dropped labels. By default `seed`."""
    sampling: Seed | None = None
    """Seed of the samples of an evaluation. By default `seed`: two arms with the same seed draw \
from the same random numbers, two seeds from others."""


class RunConfig(Section):
    """The whole configuration of one run."""

    profile: Name = "custom"
    """Name of the profile. It names files and rows of tables and has no effect on any number."""
    seed: Seed = 0
    """Seed of everything random: initial weights, order of the data, dropout, samples."""
    seeds: SeedsConfig = SeedsConfig()
    """Seeds of single sources of randomness, where they are not `seed`."""
    data: DataConfig = DataConfig()
    """The images."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer."""
    model: ModelConfig
    """The model."""
    foresight: ForesightConfig = ForesightConfig()
    """The foresight: one value of each axis."""
    regularizer: RegularizerConfig = NoRegularizer()
    """The regularizer: a rival of foresight, by its `name`. By default `none`."""
    train: TrainConfig
    """The training recipe."""
    evaluation: EvaluationConfig
    """The evaluations."""
    machine: MachineConfig = MachineConfig()
    """The machine. Not fingerprinted."""
    made_with: SkipJsonSchema[dict[str, str]] = Field(default={}, alias="plugins", exclude=True)
    """What the file of a run says of the plug-ins that it uses: the hash of each one's code, by module. It \
must be the code that is loaded here. A new file leaves it out."""

    @model_validator(mode="before")
    @classmethod
    def _needs_plugins(cls, fields: Any) -> Any:
        made_with = fields.get("plugins") if isinstance(fields, dict) else None
        for module in made_with if isinstance(made_with, dict) else ():
            if not plugins.is_loaded(module):
                raise ValueError(f"the run uses the plug-in {module}, which is code: write --import {module}")
        return fields

    @model_serializer(mode="wrap")
    def _with_plugins(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        return fields | {"plugins": self.plugins} if self.plugins else fields

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        # The rules that need several sections. Those of one section have passed by now.
        self._check_grid()
        self._check_files()
        self._check_training()
        self._check_plugins()
        return self

    def _check_grid(self) -> None:
        size = self.data.image_size
        downsample = self.tokenizer.downsample
        if size % downsample:
            raise ValueError(
                f"data.image_size is {size}, not a multiple of tokenizer.downsample = {downsample}"
            )
        for of_rival in self.regularizer.layers:
            resolve_layer(of_rival, self.model.depth)  # for its ValueError
        foresight = self.foresight
        if foresight.level == "none":  # its other fields have no effect
            return
        if self.regularizer.name == "npp":
            raise ValueError(
                f"regularizer.name is npp with foresight.level: {foresight.level}, but states of patches "
                "have no cells to look ahead from: write level: none"
            )
        height, width = self.grid
        most = self.num_tokens - (not foresight.has_own_cell)
        if foresight.k > most:
            without = "" if foresight.has_own_cell else ", and own_cell is false"
            raise ValueError(
                f"foresight.k is {foresight.k}, but the token grid has {height}x{width} = "
                f"{self.num_tokens} cells{without}: write k: {most} or less"
            )
        for layer in (foresight.layer, foresight.teacher_layer):
            if layer is not None:
                resolve_layer(layer, self.model.depth)

    def _check_files(self) -> None:
        files = {
            "tokenizer.weights": self.tokenizer.weights,
            "foresight.teacher": self.foresight.teacher,
            "foresight.encoder.weights": self.foresight.encoder.weights,  # may also be a word
        }
        for name, path in files.items():
            if isinstance(path, Path) and not path.exists():
                raise ValueError(
                    f"{name} is {str(path)!r}, which does not exist: write the path of a file, or "
                    "leave it out to use the project's own"
                )

    def _check_plugins(self) -> None:
        for module, sha256 in self.made_with.items():
            found = self.plugins.get(module)
            if found != sha256:
                raise ValueError(
                    f"the run was made with the plug-in {module} of hash {sha256}, but the code that is "
                    f"imported here has {found}: import the same code, or train the run again"
                )

    def _check_training(self) -> None:
        epochs = self.train.epochs
        last = max(self.evaluation.at, default=0)
        if last > epochs:
            raise ValueError(f"evaluation.at ends at epoch {last:g}, after train.epochs = {epochs}")
        machine = self.machine
        late = [epoch for epoch in machine.keep_at if epoch > epochs]
        if late:
            raise ValueError(f"machine.keep_at holds epoch {late[0]}, after train.epochs = {epochs}")
        # Only then is the mean of the gradients of all micro-batches the gradient of the batch.
        if self.train.batch_size % (machine.workers * machine.micro_batches):
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}, which machine.workers x "
                f"machine.micro_batches = {machine.workers} x {machine.micro_batches} does not "
                "divide"
            )
        self.check_groups(machine.workers * machine.micro_batches)
        if machine.workers > 1 and machine.gpus not in (0, machine.workers):
            raise ValueError(
                f"machine.gpus is {machine.gpus:g} with machine.workers = {machine.workers}: each "
                f"process of several takes one GPU, write gpus: {machine.workers}, or 0 on CPUs"
            )

    def check_groups(self, parts: int) -> None:
        """Raises ValueError if the batch in so many parts cuts a group of images that need each other."""
        size = self.train.batch_size
        if self.foresight.internal and self.foresight.source == "shuffled" and size // parts == 1:
            raise ValueError(
                f"foresight.source is shuffled, which gives an image the features of another one, but a "
                f"process has 1 of the {size} images at a time: write a larger train.batch_size, or fewer "
                "machine.workers or micro_batches"
            )
        group = self.regularizer.group_of(size)
        if group is not None and size // parts % group:
            raise ValueError(
                f"regularizer.name is {self.regularizer.name}, which compares {group} images with each "
                f"other, but a process has {size // parts} of the {size} images at a time: write a "
                "regularizer.group that divides them, or fewer machine.workers or micro_batches"
            )

    @property
    def plugins(self) -> dict[str, str]:
        """Returns the plug-ins whose entries have an effect, each with the hash of its code."""
        own = [
            ("dataset", self.data.dataset),
            ("tokenizer", self.tokenizer.name),
            ("regularizer", self.regularizer.name),
            ("extractor", self.evaluation.protocol.extractor),
        ]
        return plugins.identity_of([*self.foresight.named, *own])

    @property
    def grid(self) -> tuple[int, int]:
        """Returns (H, W), the size of the token grid in cells."""
        side = self.data.image_size // self.tokenizer.downsample
        return side, side

    @property
    def regularizer_hidden(self) -> int:
        """Returns the hidden width of the regularizer's heads: its own, or that of foresight's."""
        own: int | None = getattr(self.regularizer, "hidden", None)
        return self.foresight.projector.hidden if own is None else own

    @property
    def num_tokens(self) -> int:
        """Returns T = H·W, the number of tokens of an image."""
        height, width = self.grid
        return height * width

    @property
    def tokenizer_title(self) -> str:
        """Returns what the tokenizer's weights for this data and grid are called."""
        height, width = self.grid
        return f"{self.tokenizer.name}_{self.data.title}_{height}x{width}"

    @property
    def tokenizer_file(self) -> Path | None:
        """Returns the tokenizer's weight file: the named one, or else the one that ships, if any."""
        shipped = SHIPPED_TOKENIZERS / f"{self.tokenizer_title}.safetensors"
        return self.tokenizer.weights or (shipped if shipped.is_file() else None)

    def seed_of(self, source: str) -> int:
        """Returns the seed of a source of randomness, a field of `seeds`."""
        own: int | None = getattr(self.seeds, source)
        return self.seed if own is None else own

    def identity(self) -> dict[str, Any]:
        """Returns every value that can change a number, and nothing else.

        A file is represented by the sha256 of its content, never by its path.
        """
        fields = self.model_dump(mode="json", exclude={"machine", "profile", "seed"})
        fields["seeds"] = {name: self.seed_of(name) for name in SeedsConfig.model_fields}
        fields["foresight"] = self.foresight.relevant()
        # 1. Names, and fields that have no effect, are left out.
        if self.regularizer.name == "none":  # as in the fingerprints of runs before there was any
            del fields["regularizer"]
        elif "hidden" in fields["regularizer"]:
            fields["regularizer"]["hidden"] = self.regularizer_hidden
        del fields["model"]["size"]
        if self.model.attention_dropout == 0:  # as in the fingerprints of runs before there was any
            del fields["model"]["attention_dropout"]
        del fields["evaluation"]["protocol"]["name"]
        del fields["evaluation"]["primary"]
        del fields["train"]["recipe"]
        for name in self.data.unused:
            del fields["data"][name]
        # 2. Files are represented by their content.
        encoder = fields["foresight"].get("encoder", {})  # left out of most sources
        for section, key, path in (
            (fields["tokenizer"], "weights", self.tokenizer_file),
            (fields["foresight"], "teacher", self.foresight.teacher),
            (encoder, "weights", self.foresight.encoder.weights),
        ):
            if isinstance(path, Path) and key in section:
                section[key] = file_sha256(path)
        return {"numerics": NUMERICS} | fields

    def fingerprint(self) -> str:
        """Returns 12 hexadecimal digits of the hash of `identity`. They name the run's folder."""
        return digest(self.identity())

    @property
    def run_path(self) -> Path:
        """Returns the path of the run's folder."""
        return self.machine.runs / self.fingerprint()

    def for_record(self) -> dict[str, Any]:
        """Returns all fields as a record shows them: without the folders of this machine."""
        return self.model_dump(mode="json", exclude={"machine": set(LOCAL_FOLDERS)})

    def with_machine(self, **fields: Any) -> RunConfig:
        """Returns the same run with other fields of `machine`, for instance `micro_batches`."""
        return self.model_copy(update={"machine": self.machine.model_copy(update=fields)})
