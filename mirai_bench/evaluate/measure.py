"""Computes all metrics in one pass over the images.

Memory is constant in the number of images, except for the `pool` features that KID and
precision/recall need. Work is dealt out in units of fixed size, so neither the batch size nor the
number of processes decides which images share a forward pass of the extractor.
"""

from __future__ import annotations

import time
import typing
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from mirai_bench.config.protocol import Protocol
from mirai_bench.data.images.image_sets import ImageSet, NpzWriter, resized
from mirai_bench.data.tokenizers import Tokenizer
from mirai_bench.evaluate.exact import Rule
from mirai_bench.evaluate.extractors import Extractor, FeatureCollector
from mirai_bench.evaluate.metrics import frechet, frechet_at_infinity
from mirai_bench.evaluate.pairs import compare_pairs, draw_subsets, mind, within
from mirai_bench.evaluate.references import Reference
from mirai_bench.model.transformer import ARModel
from mirai_bench.results.frame import RECONSTRUCTIONS
from mirai_bench.sample.sampler import ImageSampler, equal_parts, to_sample
from mirai_bench.utils.cli import progress
from mirai_bench.utils.distributed import Ranks
from mirai_bench.utils.errors import UserError

T = TypeVar("T")

UNIT = 500  # images that a process makes and extracts at a time
FEWEST = 10  # images: the Inception Score has ten splits, precision and recall need four neighbours
# Memory of a batch of samples: so much on a CPU, and on a GPU such a share of what is free.
CPU_BYTES = 2**30
GPU_SHARE = 0.5
# Bytes per logit while a token is drawn, with the copies in float64 and the sums over codes.
DRAW_BYTES = 40


# ---- sources of images


class Source(typing.Protocol):
    """Images that can be read in units."""

    def __len__(self) -> int: ...

    def read(self, rows: range) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns images uint8 (B, h, w, 3) and their classes (B,), if they have any."""


class StoredImages:
    """Images from a folder or .npz file, as an image source."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: range) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns images uint8 (B, h, w, 3) and their classes (B,), if they have any."""
        labels = self.images.labels
        return self.images.read(rows), None if labels is None else labels[rows.start : rows.stop]


class SampledImages:
    """The samples of a model under a protocol, as an image source.

    `batch_size` changes speed and memory only. By default it is as large as is sensible.
    """

    def __init__(
        self,
        model: ARModel,
        tokenizer: Tokenizer,
        protocol: Protocol,
        run_seed: int,
        batch_size: int | None,
    ) -> None:
        """`run_seed` is the run's `seeds.sampling`."""
        model = to_sample(model, protocol)
        size = batch_size or sampling_batch(model, protocol, batch_bytes(model.tok_embeddings.weight.device))
        size = equal_parts(min(UNIT, protocol.num_samples), size)
        self.protocol = protocol
        self.sampler = ImageSampler(model, tokenizer, protocol, run_seed, size)

    def __len__(self) -> int:
        return self.protocol.num_samples

    def read(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Samples images uint8 (B, h, w, 3) and returns them with their classes (B,)."""
        images, labels = zip(*self.sampler(rows), strict=True)
        return torch.cat(images).cpu().numpy(), torch.cat(labels).cpu().numpy()

    def release(self) -> None:
        """Frees the memory that sampling takes."""
        self.sampler.release()


def batch_bytes(device: torch.device) -> int:
    """Returns how much memory a batch of samples may take."""
    if device.type == "cpu":
        return CPU_BYTES
    # What PyTorch holds without using it is as good as free.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + idle))


def sampling_batch(model: ARModel, protocol: Protocol, num_bytes: int) -> int:
    """Returns the largest number of images per batch that fits into `num_bytes` and into a unit."""
    config = model.config
    weight = model.tok_embeddings.weight  # (V, D)
    width = config.kv_heads * (config.width // config.heads)
    cache = 2 * config.depth * width * model.tokens * weight.element_size()
    rows = 2 if protocol.cfg_scale != 1 else 1  # of an image
    return max(1, min(UNIT, num_bytes // (rows * (cache + DRAW_BYTES * len(weight)))))


# ---- units of work, shared by the ranks


class Meter:
    """Measures images: their features against a reference, their data set's rule, or both."""

    def __init__(
        self, num_images: int, extractor: Extractor | None, reference: Reference | None, rule: Rule | None
    ) -> None:
        """`reference` is given with `extractor`."""
        self.num_images = num_images
        self.extractor = extractor
        self.reference = reference
        self.rule = rule
        self.samples = (
            FeatureCollector(num_images, extractor.entry, extractor.device) if extractor is not None else None
        )
        self.obeying = 0  # images that obey the rule

    def look(self, images: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {feature: (B, d)} of images uint8 (B, h, w, 3), and which `obey` the rule, (B,).

        The extractor is given the images as `seen`, which may have been resized.
        """
        found = self.extractor(seen) if self.extractor is not None else {}
        if self.rule is not None:
            found["obey"] = self.rule.obeyed(images)
        return found

    def add(self, found: dict[str, np.ndarray], labels: np.ndarray | None) -> None:
        """Adds what `look` found in the next images, with their classes (B,), if they have any."""
        if self.samples is not None:
            self.samples.add(found, labels)
        if self.rule is not None:
            self.obeying += int(found["obey"].sum())

    def values(self, extrapolate: bool) -> dict[str, float]:
        """Returns the metrics of all images."""
        values = {}
        if self.samples is not None:
            assert self.extractor is not None and self.reference is not None, "given together"
            values = compare(self.samples, self.reference, self.extractor.device, extrapolate)
        if self.rule is not None:
            values["rule"] = self.obeying / self.num_images
        return values


class Unit(NamedTuple):
    """Some consecutive images and what was found in them."""

    images: np.ndarray | None
    """Images uint8 (B, h, w, 3) as the extractor saw them. None if another process has them and \
nobody asked for them."""
    labels: np.ndarray | None
    num_images: int
    found: dict[str, np.ndarray]
    """What the meter found."""
    seconds: float
    """Time that making the images took."""


def round_robin(count: int, make: Callable[[int], T], ranks: Ranks) -> Iterator[T]:
    """Yields make(0), …, make(count - 1) in this order on rank 0, and nothing elsewhere.

    The ranks take turns in making them.
    """
    for start in range(0, count, ranks.world):
        mine = start + ranks.rank
        made = make(mine) if mine < count else None
        for each in _gathered(made, ranks):
            if each is not None:
                yield each


def _gathered(made: T | None, ranks: Ranks) -> list[T | None]:
    """Returns what each rank made, on rank 0, and an empty list elsewhere."""
    if ranks.world == 1:
        return [made]
    gathered: list[T | None] = [None] * ranks.world if ranks.rank == 0 else []
    torch.distributed.gather_object(made, gathered or None, group=ranks.group)
    return gathered


def units(source: Source, meter: Meter, resize: int, ranks: Ranks, keep_images: bool) -> Iterator[Unit]:
    """Yields all images of the source with what is found in them, in order, on rank 0."""

    def make(number: int) -> Unit:
        start = time.perf_counter()
        images, labels = source.read(range(number * UNIT, min((number + 1) * UNIT, len(source))))
        seen = resized(images, resize)
        seconds = time.perf_counter() - start
        found = meter.look(images, seen)
        kept = seen if keep_images or ranks.rank == 0 else None
        return Unit(kept, labels, len(images), found, seconds)

    return round_robin(-(-len(source) // UNIT), make, ranks)


# ---- metrics


class Measured(NamedTuple):
    """What a measurement found."""

    metrics: dict[str, float]
    first: np.ndarray
    """The first images, at most UNIT."""
    sample_seconds: float
    """Time that rank 0 took to make its share of the images. The ranks make theirs at the same time."""


def measure(
    source: Source,
    extractor: Extractor | None,
    reference: Reference | None,
    *,
    rule: Rule | None = None,
    resize: int = 0,
    ranks: Ranks | None = None,
    extrapolate: bool = False,
    writer: NpzWriter | None = None,
    label: str | None = None,
) -> Measured | None:
    """Measures all images of `source`. Returns None on ranks other than 0.

    With an extractor they are compared with the reference, and with a rule the share of images that
    obey it is measured. `resize` is the side to which images are resized for the extractor (0: they
    are not). With `extrapolate` the Fréchet distance at n = ∞ is estimated, too. `writer` writes
    the images. Progress is shown under `label`, if there is one. Raises UserError for fewer than
    FEWEST images.
    """
    if len(source) < FEWEST:
        raise UserError(f"an evaluation needs {FEWEST} images or more, found {len(source)}")
    meter = Meter(len(source), extractor, reference, rule)
    first = None
    seconds = 0.0
    ranks = ranks or Ranks()
    found = units(source, meter, resize, ranks, writer is not None)
    if label is not None and ranks.rank == 0:
        found = progress(found, label, len(source), "images", weigh=lambda unit: unit.num_images)
    for number, unit in enumerate(found):
        meter.add(unit.found, unit.labels)
        if number % ranks.world == 0:  # rank 0's own
            seconds += unit.seconds
        if first is None:
            first = unit.images
        if writer is not None and unit.images is not None:
            writer.add(unit.images, unit.labels)
    if isinstance(source, SampledImages):
        source.release()  # on every rank
    if first is None:
        return None
    if writer is not None:
        writer.close()
    return Measured(meter.values(extrapolate), first, seconds)


def compare(
    samples: FeatureCollector, reference: Reference, device: torch.device, extrapolate: bool = False
) -> dict[str, float]:
    """Returns the metrics of samples against a reference.

    A metric that lacks something (spatial features, reference images, labels) is left out.
    """
    entry = samples.entry
    pool = samples.moments["pool"].gaussian()
    values = {entry.frechet: frechet(pool, reference.pool, reference.roots["pool"])}
    if "spatial" in samples.moments and reference.spatial is not None:
        spatial = samples.moments["spatial"].gaussian()
        values["sFID"] = frechet(spatial, reference.spatial, reference.roots["spatial"])
    if reference.reconstructions is not None:
        root = reference.roots["reconstructions"]
        values[entry.frechet + RECONSTRUCTIONS] = frechet(pool, reference.reconstructions, root)
    if samples.scores is not None:
        values["IS"] = samples.scores.value()
    if reference.features is not None:
        values |= image_to_image(samples, reference, device)
    if reference.copies is not None:
        values["copies"] = reference.copies.share(samples.kept)
    if extrapolate:
        values[f"{entry.frechet}-infinity"] = frechet_at_infinity(samples.kept, reference.pool)
    if samples.labelled == samples.n:
        values["class_accuracy"] = samples.correct / samples.n
    return values


def image_to_image(samples: FeatureCollector, reference: Reference, device: torch.device) -> dict[str, float]:
    """Returns the metrics that need the features themselves, not their moments."""
    assert reference.features is not None, "the caller has looked"
    fake = torch.from_numpy(samples.kept).to(device)
    real = torch.from_numpy(reference.features).to(device, torch.float64)
    count, size = samples.entry.kid
    subsets = draw_subsets(len(fake), len(real), count, min(size, len(fake), len(real)), device)
    # All evaluations of a run have as many samples, and share what the reference says of itself.
    of_real = reference.within.get(len(fake))
    if of_real is None:
        of_real = reference.within[len(fake)] = within(real, subsets.theirs)
    found = compare_pairs(fake, real, within(fake, subsets.ours), of_real, subsets)
    kid = found.pop("kid")
    return {samples.entry.kernel: kid, samples.entry.sliced: mind(fake, real)} | found
