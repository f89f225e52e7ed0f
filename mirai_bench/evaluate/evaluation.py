"""Evaluation of a model or images under the protocol of a config."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.config.protocol import Protocol
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import has_heldout_codes, open_codes
from mirai_bench.data.images.grid import first_grid
from mirai_bench.data.tokenizers import Tokenizer, load_tokenizer
from mirai_bench.evaluate.exact import Rule, metrics_of_heldout, open_rule
from mirai_bench.evaluate.extractors import Extractor, entry_of, open_extractor
from mirai_bench.evaluate.measure import SampledImages, Source, measure, round_robin
from mirai_bench.evaluate.reconstructions import reconstructions_of
from mirai_bench.evaluate.reference_images import SPLITS, split_images
from mirai_bench.evaluate.references import Reference, find_reference, open_reference
from mirai_bench.model.transformer import ARModel
from mirai_bench.results.frame import BITS, RECONSTRUCTIONS, lower_is_better
from mirai_bench.utils.distributed import Ranks
from mirai_bench.utils.errors import UserError

HELDOUT_BATCH = 256  # images per forward pass of the held-out loss
NONE = {"name": "none"}  # identity of an extractor or a reference that an evaluation does not have


class Evaluation(NamedTuple):
    """The result of an evaluation."""

    metrics: dict[str, float]
    provenance: dict[str, Any]
    """What a reader needs to repeat it: protocol, protocol_digest, extractor, reference."""
    grid: np.ndarray
    """The first samples as one image uint8 (h, w, 3), with one class per column."""
    sample_seconds: float
    evaluate_seconds: float


@dataclass(frozen=True)
class Evaluator:
    """Evaluates under the protocol of a config.

    What all evaluations share is opened once, by the first of them. Opening raises UserError if the
    extractor's weights or the reference are missing.
    """

    config: RunConfig
    device: torch.device
    weights: Path | None = None
    """Weight file of the extractor. By default it is found or made."""

    @property
    def protocol(self) -> Protocol:
        """Returns the protocol of the config."""
        return self.config.evaluation.protocol

    @cached_property
    def extractor(self) -> Extractor | None:
        """The feature extractor, if the protocol has one."""
        if self.protocol.extractor == "none":
            return None
        return open_extractor(self.config, self.protocol.extractor, self.device, self.weights)

    @cached_property
    def reference(self) -> Reference | None:
        """What images are compared with, if there is an extractor."""
        if self.extractor is None:
            return None
        found = open_reference(self.config, self.protocol.reference, self.extractor)
        n = self.protocol.num_samples
        if self.protocol.extractor == "own" and found.n is not None and n > found.n:
            raise UserError(
                f"protocol.num_samples is {n}, but the reference {found.name} has {found.n} images: write "
                f"num_samples: {found.n} or fewer, as in own_100"
            )
        return found

    @cached_property
    def with_reconstructions(self) -> Reference | None:
        """The reference with its reconstructions, if the tokenizer is lossy."""
        if self.reference is None:
            return None
        assert self.extractor is not None, "there is a reference"
        found = reconstructions_of(self.config, self.extractor, self.tokenizer)
        return replace(self.reference, reconstructions=found)

    @cached_property
    def rule(self) -> Rule | None:
        """The rule of the data set, if it is a planted one."""
        return open_rule(self.config, self.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that turns sampled codes into images."""
        return load_tokenizer(self.config, self.device)

    @cached_property
    def heldout(self) -> tuple[Tensor, Tensor]:
        """The held-out codes (N, T) and labels (N,)."""
        return open_codes(self.config, "heldout", self.device).all()

    def open(self) -> None:
        """Opens now what images are compared with, and so makes or downloads what is missing."""
        check_metrics(self.config)
        if has_heldout_codes(self.config):
            _ = self.heldout
        _ = self.with_reconstructions

    def evaluate_model(
        self,
        model: ARModel,
        *,
        batch_size: int | None = None,
        sampling_seed: int | None = None,
        **options: Any,
    ) -> Evaluation | None:
        """Samples what the protocol says and measures it, with the loss on the held-out split.

        `model` holds the weights that the protocol names. `batch_size` changes the speed and memory
        of sampling only. `sampling_seed` replaces the run's. `options` are those of `measure`. With
        `ranks` all processes of the group call this and share the work; all but rank 0 get None.
        """
        run_seed = self.config.seed_of("sampling") if sampling_seed is None else sampling_seed
        source = SampledImages(model, self.tokenizer, self.protocol, run_seed, batch_size)
        return self.evaluate(source, model, **options)

    def evaluate(self, source: Source, model: ARModel | None = None, **options: Any) -> Evaluation | None:
        """Measures images.

        `model` is the one that sampled them, if there is one. `options` are those of `measure`.
        """
        start = time.perf_counter()
        check_metrics(self.config, model is not None)
        options |= {"rule": self.rule, "resize": self.protocol.resize}
        # Images alone have no codes, so that there is no tokenizer that could have limited them.
        reference = self.reference if model is None else self.with_reconstructions
        measured = measure(source, self.extractor, reference, **options)
        losses = {}
        if model is not None and has_heldout_codes(self.config):
            losses["heldout_ntp"] = self.heldout_ntp(model, options.get("ranks"))
        if measured is None:
            return None
        metrics = measured.metrics | losses
        if self.reference is not None:
            self.reference.say_other_size(self.protocol.resize or measured.first.shape[1])
        if losses and self.rule is not None:
            assert model is not None, "it has held-out losses"
            metrics |= self.rule.of_heldout(*self.heldout_cells(model))
        grid = first_grid(measured.first, self.config.data.classes)
        provenance = {
            "protocol": self.protocol.model_dump(mode="json"),
            "protocol_digest": self.protocol.digest(),
            "extractor": self.extractor.identity if self.extractor is not None else NONE,
            "reference": self.reference.identity if self.reference is not None else NONE,
        }
        seconds = time.perf_counter() - start - measured.sample_seconds
        return Evaluation(metrics, provenance, grid, measured.sample_seconds, seconds)

    @torch.inference_mode()
    def heldout_ntp(self, model: ARModel, ranks: Ranks | None = None) -> float:
        """Returns the next-token loss on the held-out split, in nats per token, without dropout.

        The model is given the true classes. With `ranks` all processes of the group call this and
        share the batches; what is returned on others than rank 0 means nothing.
        """
        batches = self._heldout_batches()

        def loss(number: int) -> float:
            tokens, labels = batches[number]
            logits = model(tokens, labels).logits.float()
            return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum").item()

        # Added up in the order of the batches, so that the number of processes changes nothing.
        total = sum(round_robin(len(batches), loss, ranks or Ranks()))
        return total / self.heldout[0].numel()

    @torch.inference_mode()
    def heldout_cells(self, model: ARModel) -> tuple[Tensor, Tensor]:
        """Returns the loss in nats and the accuracy of each cell (T,) on the held-out split.

        A prediction is the most probable code, after the true codes of the earlier cells.
        """
        tokens, _ = self.heldout
        nats = torch.zeros(tokens.shape[1], dtype=torch.float64)
        correct = torch.zeros_like(nats)
        for batch, labels in self._heldout_batches():
            logits = model(batch, labels).logits.float()
            losses = F.cross_entropy(logits.transpose(1, 2), batch, reduction="none")  # (B, T)
            nats += losses.sum(0, dtype=torch.float64).cpu()
            correct += (logits.argmax(-1) == batch).sum(0).cpu()
        return nats / len(tokens), correct / len(tokens)

    def _heldout_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Returns the tokens (B, T) and labels (B,) of the held-out split, batch by batch."""
        tokens, labels = self.heldout
        return list(zip(tokens.split(HELDOUT_BATCH), labels.split(HELDOUT_BATCH), strict=True))


def check_metrics(config: RunConfig, has_model: bool = True) -> None:
    """Raises UserError if an evaluation of a model, or of images alone, would measure nothing.

    The same holds if the metric that decides will not be measured.
    """
    is_planted = config.data.dataset == "staircase"
    has_loss = has_model and has_heldout_codes(config)
    if config.evaluation.protocol.extractor == "none" and not is_planted and not has_loss:
        where = "the data has no held-out split" if has_model else "images alone have no held-out loss"
        raise UserError(f"protocol.extractor is none, and {where}: nothing is measured; name an extractor")
    named = config.evaluation.primary
    if named is not None:
        lower_is_better(named)  # for its UserError, if it is no metric at all
        known = possible_metrics(config, has_loss)
        if has_model and named not in known:
            raise UserError(
                f"evaluation.primary is {named}, which is not measured here: write one of {', '.join(known)}"
            )


def possible_metrics(config: RunConfig, has_loss: bool) -> list[str]:
    """Returns the names of the metrics that an evaluation of this config can have."""
    names = ["heldout_ntp", BITS] if has_loss else []
    if config.evaluation.protocol.extractor != "none":
        entry = entry_of(config.evaluation.protocol.extractor)
        names += [entry.frechet, f"{entry.frechet}{RECONSTRUCTIONS}", f"{entry.frechet}-infinity"]
        names += [entry.kernel, entry.sliced, "precision", "recall", "density", "coverage", "copies"]
        names += ["sFID"] if "spatial" in entry.features else []
        names += ["class_accuracy" if entry.labels else "IS"] if "logits" in entry.features else []
    if config.data.dataset == "staircase":
        names += ["rule", *(metrics_of_heldout(config.data.staircase) if has_loss else [])]
    return names


def check_evaluation(config: RunConfig) -> None:
    """Raises UserError if a run of this config could not be evaluated.

    Trains or downloads missing weights of the extractor now, so that a failure shows before
    training starts.
    """
    check_metrics(config)
    protocol = config.evaluation.protocol
    if protocol.extractor == "none":
        return
    entry_of(protocol.extractor).locate(config, None)
    if protocol.reference in SPLITS:
        split_images(config, protocol.reference)
    else:
        find_reference(config.machine.assets, protocol.reference)
