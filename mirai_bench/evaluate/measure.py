"""Images → numbers, in one pass: every image is made, resized, and seen by the extractor once; what is kept does not grow but for `pool`.

Work is dealt out in units of fixed size, so neither the batch size nor the number of processes decides which images share a forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from mirai_bench.config import protocol as protocols
from mirai_bench.data.images.image_sets import ImageSet, NpzWriter, resized
from mirai_bench.data.tokenizers import Tokenizer
from mirai_bench.evaluate.extractors import Collected, Extractor
from mirai_bench.evaluate.metrics import density_coverage, frechet, frechet_at_infinity
from mirai_bench.evaluate.references import Reference
from mirai_bench.model.transformer import ARModel
from mirai_bench.sample.sampler import sample_images
from mirai_bench.utils.distributed import Ranks
from mirai_bench.utils.errors import UserError

T = TypeVar("T")


UNIT = 500  # images that a process makes and extracts in one go


FEWEST = 10  # images: the Inception Score has ten splits, precision and recall need four neighbours


NEIGHBOURS = 3  # of precision and recall


KID_SEED = 2020


DISTANCE_ROWS = 500  # of a block of the distance matrix of precision and recall


CACHE_BYTES = {"cpu": 2**30, "cuda": 2**34}  # of the keys and values of one batch of samples


class Source(Protocol):
    def __len__(self) -> int: ...

    def read(self, rows: range) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 (B, h, w, 3) and their classes (B,), if they have any."""


def sampling_batch(model: ARModel, protocol: protocols.Protocol) -> int:
    """Images a batch, as many as fit into CACHE_BYTES and a unit of work."""
    config, weight = model.config, model.tok_embeddings.weight
    width = config.kv_heads * (config.width // config.heads)
    guided = 2 if protocol.cfg_scale != 1 else 1
    per_image = 2 * config.depth * width * model.tokens * weight.element_size() * guided
    return max(1, min(UNIT, CACHE_BYTES[weight.device.type] // per_image))


class Sampled:
    """The samples of a model under a protocol. `batch_size` is speed and memory only; by default as much as is sensible."""

    def __init__(
        self, model: ARModel, tokenizer: Tokenizer, protocol: protocols.Protocol, batch_size: int | None
    ) -> None:
        self.model, self.tokenizer, self.protocol = model, tokenizer, protocol
        self.batch_size = batch_size or sampling_batch(model, protocol)

    def __len__(self) -> int:
        return self.protocol.num_samples

    def read(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        parts = list(
            sample_images(self.model, self.tokenizer, self.protocol, rows, batch_size=self.batch_size)
        )
        images, labels = (torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True))
        return images, labels


class Stored:
    """Anybody's images."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: range) -> tuple[np.ndarray, np.ndarray | None]:
        labels = self.images.labels
        return self.images.read(rows), None if labels is None else labels[rows.start : rows.stop]


class Unit(NamedTuple):
    images: np.ndarray | None
    """uint8 (B, h, w, 3) as the extractor saw them; None where another process has them and nobody asked"""
    labels: np.ndarray | None
    features: dict[str, np.ndarray]
    seconds: float
    """that making the images took"""

    @property
    def num_images(self) -> int:
        return len(self.features["pool"])


def in_turns(count: int, make: Callable[[int], T], ranks: Ranks) -> Iterator[T]:
    """make(0), …, make(count - 1) in this order at rank 0, and nothing elsewhere; the ranks make them in turns."""
    for start in range(0, count, ranks.world):
        mine = start + ranks.rank
        made = make(mine) if mine < count else None
        if ranks.world == 1:
            yield made
            continue
        gathered = [None] * ranks.world if ranks.rank == 0 else None
        torch.distributed.gather_object(made, gathered, group=ranks.group)
        if gathered is not None:
            yield from (each for each in gathered if each is not None)


def units(
    source: Source, extractor: Extractor, resize: int, ranks: Ranks, keep_images: bool
) -> Iterator[Unit]:
    def make(number: int) -> Unit:
        start = time.perf_counter()
        images, labels = source.read(range(number * UNIT, min((number + 1) * UNIT, len(source))))
        images = resized(images, resize)
        seconds = time.perf_counter() - start
        features = extractor(images)
        return Unit(images if keep_images or ranks.rank == 0 else None, labels, features, seconds)

    return in_turns(-(-len(source) // UNIT), make, ranks)


class Measured(NamedTuple):
    metrics: dict[str, float]
    first: np.ndarray
    """the first images, at most UNIT"""
    sample_seconds: float


def measure(
    source: Source,
    extractor: Extractor,
    reference: Reference,
    *,
    resize: int = 0,
    ranks: Ranks | None = None,
    extrapolate: bool = False,
    writer: NpzWriter | None = None,
    watch: Callable[[Iterator[Unit]], Iterator[Unit]] = iter,
) -> Measured | None:
    """The metrics of all images of `source`; None at ranks other than 0. `writer` is given the images, `watch` may show progress."""
    ranks = ranks or Ranks()
    if len(source) < FEWEST:
        raise UserError(f"an evaluation needs {FEWEST} images or more, found {len(source)}")
    collected, first, seconds, labelled = Collected(len(source), extractor.entry), None, 0.0, True
    for unit in watch(units(source, extractor, resize, ranks, writer is not None)):
        collected.add(unit.features, unit.labels)
        first = unit.images if first is None else first
        seconds += unit.seconds
        labelled = labelled and unit.labels is not None
        if writer is not None:
            writer.add(unit.images, unit.labels)
    if first is None:
        return None
    if writer is not None:
        writer.close()
    metrics = compare(collected, reference, extractor.device)
    if extrapolate:
        metrics[f"{extractor.entry.frechet}-infinity"] = frechet_at_infinity(collected.kept, reference.pool)
    if extractor.entry.labels and labelled:
        metrics["class_accuracy"] = collected.correct / collected.n
    return Measured(metrics, first, seconds)


def compare(samples: Collected, reference: Reference, device: torch.device) -> dict[str, float]:
    """The metrics of samples against a reference; those that lack something (spatial features, reference images) are not there."""
    entry = samples.entry
    values = {
        entry.frechet: frechet(samples.moments["pool"].gaussian(), reference.pool, reference.roots["pool"])
    }
    if "spatial" in samples.moments and reference.spatial is not None:
        values["sFID"] = frechet(
            samples.moments["spatial"].gaussian(), reference.spatial, reference.roots["spatial"]
        )
    if samples.scores is not None:
        values["IS"] = samples.scores.value()
    if reference.features is not None:
        values |= image_to_image(samples, reference.features, device)
    return values


def image_to_image(samples: Collected, real: np.ndarray, device: torch.device) -> dict[str, float]:
    """KID, precision and recall by torch-fidelity, density and coverage: what needs the features themselves, not their moments."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    fake = samples.kept
    pair = torch.from_numpy(fake), torch.from_numpy(real)
    subsets, size = samples.entry.kid
    size = min(size, len(fake), len(real))
    kid = kid_features_to_metric(
        *pair, kid_subsets=subsets, kid_subset_size=size, rng_seed=KID_SEED, verbose=False
    )
    on_device = (features.to(device) for features in pair)
    prc = prc_features_to_metric(
        *on_device,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=DISTANCE_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    density, coverage = density_coverage(fake, real)
    return {
        samples.entry.kernel: kid[KEY_METRIC_KID_MEAN],
        "precision": round(prc["precision"] * len(fake)) / len(fake),  # torch-fidelity averages in float32
        "recall": round(prc["recall"] * len(real)) / len(real),
        "density": density,
        "coverage": coverage,
    }
