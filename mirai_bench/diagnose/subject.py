"""What is looked at: one checkpoint of one run, with its states on held-out images.

Letters: N images, T tokens, D width, L blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Batch
from mirai_bench.data.codes import Codes, has_heldout_codes, open_codes
from mirai_bench.data.images.crops import center_view
from mirai_bench.diagnose.scope import Scope
from mirai_bench.diagnose.snapshots import Snapshot
from mirai_bench.foresight import SourceContext
from mirai_bench.foresight.source import SOURCES
from mirai_bench.model.transformer import ARModel, Grid, build_model
from mirai_bench.train.objective import Objective
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils.device import Hardware
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import check_fits

# Images per forward pass. It is fixed, so that the numbers do not depend on the memory of a device.
BATCH = 64


class NotMeasurable(Exception):
    """A diagnostic does not apply to this run, or what it needs is gone. The message says why."""


@dataclass
class Subject:
    """One checkpoint of one run, and the images that it is looked at with.

    States are those of the EMA weights, which are what is sampled and evaluated. All computation is in
    float32 and without dropout.
    """

    config: RunConfig
    snapshot: Snapshot
    scope: Scope
    device: torch.device
    codes: Codes
    """The codes of the training split, which the snapshots of a run share."""
    baseline: Subject | None = None
    """The same checkpoint of the baseline of the same seed, if the run is an arm of a sweep."""

    @property
    def grid(self) -> Grid:
        """Returns the rows and columns of the tokens."""
        return self.config.grid

    @property
    def depth(self) -> int:
        """Returns the number of blocks L."""
        return self.config.model.depth

    @property
    def middle(self) -> int:
        """Returns the block whose values stand in tables: the one that the paper aligns, 8 of 12."""
        return max(1, round(self.depth * 8 / 12))

    @cached_property
    def model(self) -> ARModel:
        """The model with the EMA weights, without gradients."""
        model = build_model(self.config)
        check_fits(model, self.snapshot.ema, "the EMA weights")
        model.load_state_dict(self.snapshot.ema)
        return model.requires_grad_(False).to(self.device)

    @cached_property
    def heldout_codes(self) -> Codes:
        """The codes of the held-out split."""
        if not has_heldout_codes(self.config):
            raise NotMeasurable("its data has no held-out split")
        return open_codes(self.config, "heldout", self.device)

    @cached_property
    def heldout(self) -> Batch:
        """The held-out images that everything is measured on."""
        return evenly_spaced(self.heldout_codes, self.scope.heldout_images)

    @cached_property
    def fit(self) -> Batch:
        """The training images that probes are fitted to."""
        return self.training(self.scope.fit_images)

    def training(self, most: int) -> Batch:
        """Returns at most `most` training images, cropped at the centre as the held-out images are."""
        return evenly_spaced(self.codes, most, center_view(self.config.data))

    @cached_property
    def objective(self) -> Objective:
        """The trained weights with their foresight heads and teacher, as the training step has them.

        Raises NotMeasurable if the checkpoint holds the EMA only, or no heads, or the teacher is gone.
        """
        student = self.snapshot.student
        if student is None:
            raise NotMeasurable("only the EMA weights of this epoch were kept")
        try:
            trainer = Trainer(self.config, Hardware(self.device), codes=self.codes)
        except UserError as error:
            raise NotMeasurable(f"its teacher cannot be opened: {error}") from None
        missing = sorted(trainer.student_weights().keys() - student.keys())
        if missing:  # imported from an official file
            raise NotMeasurable(f"its checkpoint has no heads of the training loss, such as {missing[0]}")
        trainer.load(student, self.snapshot.ema)
        return trainer.objective

    @property
    def _sees_pixels(self) -> bool:
        """Tells whether the teacher reads images, and not tokens."""
        foresight = self.config.foresight
        of_encoder = foresight.internal and foresight.provider == "encoder"
        return of_encoder and foresight.encoder.name != "masked_tokens"

    @cached_property
    def heldout_objective(self) -> Objective:
        """`objective` for held-out images: a source that reads pixels reads theirs.

        It shares the weights and the heads of `objective`.
        """
        objective = self.objective
        level = objective.foresight
        if not self._sees_pixels:
            return objective
        foresight = self.config.foresight
        # Cached features are those of the training images.
        uncached = {"encoder": foresight.encoder.model_copy(update={"cache": False})}
        config = self.config.model_copy(update={"foresight": foresight.model_copy(update=uncached)})
        context = SourceContext(config, self.model, self.heldout_codes, lambda: self.model, self.device)
        level = copy.copy(level)
        level.source = SOURCES[foresight.source](context)  # type: ignore[union-attr]
        return Objective(objective.model, level)

    # ---- states

    def layers(self, images: Batch, *, null_class: bool = False) -> Iterator[Tensor]:
        """Yields the states (N, T, D) before the first block and after each of them, L + 1 in all.

        State s has consumed the class and the first s tokens. With `null_class` the class is the null
        class, so that only the tokens tell what the image shows. One layer is held at a time: all of
        those of LlamaGen-B would be 20 GB.
        """
        labels = torch.full_like(images.labels, self.config.data.classes) if null_class else images.labels
        parts = zip(images.tokens.split(BATCH), labels.split(BATCH), strict=True)
        with torch.inference_mode():
            states = [self.model.embed(tokens[:, :-1], of_tokens) for tokens, of_tokens in parts]
        yield torch.cat(states)
        for block in self.model.layers:
            with torch.inference_mode():
                states = [block(x, self.model.rope[: x.shape[1]]) for x in states]
            yield torch.cat(states)

    def states(self, layer: int, images: Batch, *, null_class: bool = False) -> Tensor:
        """Returns the states (N, T, D) after block `layer`, as `layers` has them."""
        return next(islice(self.layers(images, null_class=null_class), layer, None))


def evenly_spaced(codes: Codes, most: int, view: int = 0) -> Batch:
    """Returns a view of at most `most` images of a split, evenly spaced."""
    n = min(most, codes.num_images)
    return codes.images(torch.arange(n, device=codes.device) * codes.num_images // n, view)
