"""The configuration of foresight: where it enters, which cells it looks at, who provides it."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mirai_bench.config.projector import ProjectorConfig
from mirai_bench.config.sections import Amount, Fraction01, Named, Positive, Rate, Section, Seed, UserPath
from mirai_bench.utils import plugins

# The built-in entries of the three axes, and of the encoders: LEVELS, LAYOUTS, SOURCES and ENCODERS of
# the room `foresight`. Plug-ins add others.
LEVEL = Named("level", "none", "output", "internal")
LAYOUT = Named("layout", "raster_1d", "grid_2d", "grid_2d_flat")
SOURCE = Named("source", "ema", "frozen", "encoder", "random", "shuffled")
ENCODER = Named(
    "encoder",
    "masked_tokens",
    *("dinov2_s", "dinov2_b", "dinov2_l", "dinov2_s_reg", "dinov2_b_reg", "dinov2_l_reg"),
    *("dinov3_s", "dinov3_b", "dinov3_l"),
    *("mae_b", "mae_l", "clip_b", "efficientnet_lite0", "vgg16_relu3_3"),
    listed=False,
    prefix="timm:",
)
# Sources that are causal models: their features are states, not those of cells.
EXPLICIT_SOURCES = {"ema", "frozen"}

# A 1-based index, or a fraction of the depth, which is neither 0 nor x/0.
Layer = Positive | Annotated[str, Field(pattern=r"^[1-9]\d{0,2}/[1-9]\d{0,2}$")]


def resolve_layer(layer: int | str, depth: int) -> int:
    """Returns the 1-based index of `layer` among `depth` blocks. "8/12" of 3 blocks is block 2.

    Raises ValueError if the index is not in 1…depth.
    """
    as_fraction = isinstance(layer, str)
    # A Fraction, because the error of a float could tip a half. Halves are rounded to even.
    index = max(1, round(Fraction(layer) * depth)) if as_fraction else int(layer)
    # "13/12" is refused, although of a shallow model it rounds to its last block.
    if not 1 <= index <= depth or (as_fraction and Fraction(layer) > 1):
        raise ValueError(
            f"layer {layer!r} is outside the model, which has {depth} blocks: write 1 to {depth}, "
            "or a fraction such as '8/12'"
        )
    return index


class BlockCausal(Section):
    """A context that is cut off: each cell sees the cells up to the end of its own block."""

    block_causal: Positive
    """Number of cells in a block, in raster order. A cell sees its own block and the earlier \
ones."""


class EncoderConfig(Section):
    """The frozen bidirectional encoder whose features are the targets (Mirai-I)."""

    name: Annotated[str, ENCODER] = "masked_tokens"
    """Which encoder: `masked_tokens` (built in, trained on the same codes), `efficientnet_lite0`, \
`vgg16_relu3_3`, `dinov2_b` or another entry of foresight/encoders/zoo.py, or `timm:<model>` for \
any model of timm."""
    weights: Literal["random"] | UserPath | None = None
    """Weight file, or `random` for an untrained image encoder. By default the encoder's own \
weights: masked_tokens is trained once and cached, the others come from machine.assets or the \
hub."""
    context: Literal["full"] | BlockCausal = "full"
    """Which cells each cell of the encoder sees: all of them, or `{block_causal: N}` for a \
control without foresight."""
    layer: Layer | None = None
    """Image encoders that are ViTs: the block whose output is the feature, without the final norm. By \
default the last one, with it. A fraction of the depth means the same at every size (paper, MAE: 8/12)."""
    cache: bool = False
    """Image encoders: whether the features of all views are computed once and kept in half \
precision in machine.runs. Meant for small data sets."""
    depth: Positive = 3
    """masked_tokens: number of blocks. Its width and its number of heads are those of the \
student."""
    epochs: Positive = 30
    """masked_tokens: length of its training in epochs."""

    @property
    def unused(self) -> set[str]:
        """Returns the fields that change no number, and that fingerprints therefore leave out."""
        # Those of the only encoder that is built and trained here, and one that came later.
        of_masked_tokens = set() if self.name == "masked_tokens" else {"depth", "epochs"}
        return of_masked_tokens | ({"layer"} if self.layer is None else set())

    @model_validator(mode="after")
    def _check(self) -> EncoderConfig:
        if self.layer is not None and self.name == "masked_tokens":
            raise ValueError(
                f"foresight.encoder.layer is {self.layer} with name: masked_tokens, whose features are "
                "those of its last block: leave it out, or write another depth"
            )
        if self.weights == "random" and self.name == "masked_tokens":
            raise ValueError(
                "foresight.encoder.weights is random with name: masked_tokens: write "
                "foresight.source: random instead"
            )
        if self.cache and self.name == "masked_tokens":
            raise ValueError(
                "foresight.encoder.cache is true with name: masked_tokens, which reads no pixels: "
                "write cache: false"
            )
        return self


class ForesightConfig(Section):
    """One value of each of the three axes, and everything that the paper fixes or leaves open."""

    # ---- the three axes

    level: Annotated[str, LEVEL] = "none"
    """Axis 1, where foresight enters: `none` is plain next-token prediction (NTP), `output` adds \
heads that predict the tokens of later cells, `internal` aligns hidden states with features of \
later cells (the paper's choice)."""
    layout: Annotated[str, LAYOUT] = "grid_2d"
    """Axis 2, which cells a state looks at: the next K in raster order, the K nearest on the 2-D \
grid, or the official code's flat offsets, which wrap from the end of a row to the next row."""
    source: Annotated[str, SOURCE] = "ema"
    """Axis 3, who provides the features: the model's own EMA (Mirai-E), a frozen finished model, \
a frozen bidirectional encoder (Mirai-I), or a control: an untrained encoder, or the features of \
the wrong image."""

    # ---- what is aligned with what

    k: Positive = 3
    """Number of foresight cells K per state, the nearest first. k = 1 is the state's own cell."""
    own_cell: bool = True
    """Level `internal`: whether the state's own cell is the first of the K. Without it k = 1 is the cell to \
the right, and k = 2 on the grid the cells to the right and below."""
    layer: Layer = "8/12"  # of 4, 6, 8 and 10 the best by FID (paper, table 2)
    """Alignment layer: the block of the student after which the residual stream is read, without \
a final norm. A fraction of the depth means the same at every model size."""
    teacher_layer: Layer | None = None
    """Sources ema and frozen: the block of the teacher. By default the same as `layer`."""

    # ---- the loss

    weight: Amount = 2.0
    """Weight λ in the loss NTP + λ · foresight."""
    schedule: Literal["constant", "step", "two_steps", "linear", "cosine"] = "constant"
    """How λ changes from `weight` to `final_weight` over training. `step` changes at `step_at`, and \
`two_steps` to `middle_weight` there and to `final_weight` at `second_step_at`."""
    final_weight: Amount = 1.0
    """Value of λ at the end of the schedule. Unused by `schedule: constant`."""
    step_at: Fraction01 = 0.5
    """`schedule: step`: the fraction of training after which λ is `final_weight`. `two_steps`: after \
which it is `middle_weight`."""
    middle_weight: Amount = 1.0
    """`schedule: two_steps`: the value of λ between the steps."""
    second_step_at: Fraction01 = 0.75  # the paper does not say when
    """`schedule: two_steps`: the fraction of training after which λ is `final_weight`."""
    warmup: Rate = 0.0
    """Fraction of training before foresight is switched on (paper, Mirai-E: 15 epochs, whether of 80 or \
of 300)."""
    reduce: Literal["mean", "sum"] = "mean"
    """How the losses of the K heads are combined: the paper's text averages them, the official \
code sums them."""
    loss: Literal["cosine", "smooth_l1"] = "cosine"
    """How a projected state is compared with its target: 1 - cosine, or the smooth L1 distance of SRA \
(arXiv 2505.02831), whose elbow is at 0.05. Level `internal` only."""
    pooled: bool = False
    """Whether one head aims at the mean of the K cells' features, as in Video-Mirai, instead of one head \
at each of them. Level `internal` only."""
    projector: ProjectorConfig = ProjectorConfig()
    """The projector of each head. Level `internal` only."""

    # ---- what the paper leaves open, or the official code does in another way

    pairing: Literal["consumed", "predicting"] = "consumed"
    """Which state belongs to cell i: the one that has consumed x_i (official code), or the one \
that is about to predict it (the paper's formula)."""
    class_token: bool = False
    """Sources ema and frozen: whether the state of the class token is matched too, in every head \
(official Mirai-E)."""
    share_label_drop: bool = True
    """Sources ema and frozen: whether the teacher sees the null class where the student does \
(official code: no)."""
    target_norm: Literal["none", "layer_norm", "center", "z_score"] = "none"
    """What is done to the target before it is compared: nothing, LayerNorm without affine parameters, \
subtracting the mean over the batch, or giving each channel mean 0 and deviation 1 over the cells of an \
image (iREPA, arXiv 2512.10794)."""

    # ---- what each source needs

    teacher: UserPath | None = None
    """Source frozen: a checkpoint folder or file. By default the finished baseline run of this \
profile with `teacher_seed`, which is trained first if it is missing."""
    teacher_seed: Seed = 0
    """Seed of a teacher that the project trains (sources frozen and encoder), or of random \
weights (source random, or `encoder.weights: random`)."""
    shuffled_of: Literal["encoder", "ema"] = "encoder"
    """Source shuffled: whose features are given to the wrong image."""
    encoder: EncoderConfig = EncoderConfig()
    """The frozen encoder. Source encoder, and source shuffled of one."""

    @model_validator(mode="after")
    def _check(self) -> ForesightConfig:
        if self.level == "output" and self.k < 2:
            raise ValueError(
                "foresight.k is 1 with level: output, which adds no head to next-token "
                "prediction: write k: 2 or more"
            )
        if self.schedule == "two_steps" and self.second_step_at < self.step_at:
            raise ValueError(
                f"foresight.second_step_at is {self.second_step_at:g}, before step_at: {self.step_at:g}: "
                "write the later one of the two steps"
            )
        if self.class_token and self.pairing == "predicting":
            raise ValueError(
                "foresight.class_token is true with pairing: predicting, where the class state "
                "already stands at cell 0: write pairing: consumed"
            )
        if self.class_token and self.level == "internal" and not self.explicit:
            raise ValueError(
                f"foresight.class_token is true, but source: {self.source} has no class-token "
                "state: write class_token: false or source: ema"
            )
        return self

    @property
    def internal(self) -> bool:
        """Tells whether hidden states are aligned, so that there are a source and projectors."""
        return self.level == "internal"

    @property
    def has_own_cell(self) -> bool:
        """Tells whether the state's own cell is the first of its K cells. At the output it is that of NTP."""
        return self.own_cell or not self.internal

    @property
    def num_heads(self) -> int:
        """Returns the number of heads: K, or 1 if their targets are pooled."""
        return 1 if self.internal and self.pooled else self.k

    @property
    def provider(self) -> str:
        """Returns the source that computes the features.

        Source `shuffled` only gives them to the wrong image.
        """
        return self.shuffled_of if self.source == "shuffled" else self.source

    @property
    def explicit(self) -> bool:
        """Tells whether the target is a state of a causal model, and not an encoder's feature."""
        return self.provider in EXPLICIT_SOURCES

    @property
    def uses_encoder(self) -> bool:
        """Tells whether a frozen bidirectional encoder is needed."""
        return self.internal and self.provider == "encoder"

    @property
    def trains_teacher(self) -> bool:
        """Tells whether the teacher is a run of the project that has to be trained first."""
        return self.internal and self.source == "frozen" and self.teacher is None

    @property
    def named(self) -> list[tuple[str, str]]:
        """Returns the entries of dictionaries that have an effect, as pairs of kind and name."""
        if self.level == "none":
            return []
        named = [("level", self.level), ("layout", self.layout)]
        if self.level != "output":  # where nothing is aligned
            named.append(("source", self.source))
        return [*named, ("encoder", self.encoder.name)] if self.uses_encoder else named

    @property
    def active(self) -> list[tuple[float, float]]:
        """Returns the parts of training in which λ is not 0, each from one fraction of it to another.

        A linear or cosine schedule is at a weight of 0 in its very first or after its very last
        step only: the part then holds that step, too.
        """
        if self.level == "none":
            return []
        # 1. Up to where λ is, or is at most, which weight.
        last = (1.0, self.final_weight)
        parts = {
            "constant": [(1.0, self.weight)],
            "step": [(self.step_at, self.weight), last],
            "two_steps": [(self.step_at, self.weight), (self.second_step_at, self.middle_weight), last],
        }
        smooth = [(1.0, max(self.weight, self.final_weight))]
        # 2. The parts of which λ is not 0, after the warm-up. Parts that touch are one.
        found: list[tuple[float, float]] = []
        start = self.warmup
        for end, weight in parts.get(self.schedule, smooth):
            if weight != 0 and end > start:
                if found and found[-1][1] == start:
                    start = found.pop()[0]
                found.append((start, end))
            start = max(start, end)
        return found

    def relevant(self) -> dict[str, Any]:
        """Returns the fields that can change a number, for the fingerprint.

        Two spellings of one experiment are then one experiment: a field that has no effect is left
        out.
        """
        if self.level == "none":
            return {"level": "none"}
        if self.level in plugins.names("level"):  # which may read any field
            return self.model_dump(mode="json")
        internal = self.internal
        of_internal = ("source", "layer", "projector", "pairing", "class_token", "target_norm")
        # The seed is that of a teacher that the project trains, or of the random encoder's weights.
        uses_seed = self.source in ("frozen", "random") or self.uses_encoder
        # Whether a field can change a number. Fields that are not listed always can. The conditions
        # must stay as they are: the fingerprints of all earlier runs depend on them.
        matters = dict.fromkeys(of_internal, internal) | {
            "teacher_layer": internal and self.explicit,
            "share_label_drop": internal and self.explicit,
            "teacher": internal and self.source == "frozen",
            "teacher_seed": internal and self.teacher is None and uses_seed,
            "shuffled_of": internal and self.source == "shuffled",
            "encoder": self.uses_encoder,
            "final_weight": self.schedule != "constant",
            "step_at": self.schedule in ("step", "two_steps"),
            "middle_weight": self.schedule == "two_steps",
            "second_step_at": self.schedule == "two_steps",
            "reduce": self.num_heads > 1,  # the mean and the sum of one head are the same
            # Fields that came later are left out where they say what runs before them did.
            "loss": internal and self.loss != "cosine",
            "pooled": internal and self.pooled and self.k > 1,  # the mean of one cell is the cell
            "own_cell": not self.has_own_cell,
        }
        left_out: dict[str, Any] = {name: True for name, effect in matters.items() if not effect}
        left_out.setdefault("encoder", self.encoder.unused)
        left_out.setdefault("projector", self.projector.unused)
        return self.model_dump(mode="json", exclude=left_out)
