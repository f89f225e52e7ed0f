"""`benchmark evaluate`: one evaluation, feature extractors, statistics, and peak memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from mirai_bench.benchmark.cells import measure_cells
from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.targets import Row
from mirai_bench.benchmark.timing import MEBIBYTE, alternate, in_fresh_process, spread, timed
from mirai_bench.config.load import as_settings, load_run
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.data.tokenizers.vq16 import VQ16Model
from mirai_bench.evaluate import measure as measuring
from mirai_bench.evaluate import networks
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.evaluate.extractors import EXTRACTORS, Extractor, FeatureCollector, open_extractor
from mirai_bench.evaluate.image_classifier import ImageClassifier
from mirai_bench.evaluate.inception import inception_layers
from mirai_bench.evaluate.metrics import Moments, frechet, square_root
from mirai_bench.evaluate.reference_images import FEATURES_KEPT, ReferenceImages
from mirai_bench.evaluate.references import Reference, open_reference, write_reference
from mirai_bench.model.transformer import build_model
from mirai_bench.utils.assets import find_asset

PAPERS_SAMPLES = 50_000
NOISE = {"name": "noise", "sha256": "none"}  # what a reference of noise says of its images
DIMENSIONS = 2048  # of Inception's features
IMAGE_SIZE = 32  # pixels, as CIFAR-10's; extractors resize images to their own size
DIGITS_SIZE = 8  # pixels
DIGITS_DIMENSIONS = 64  # of the features of digits, which are float64

# The weight files of each extractor that searches for one.
FILES = {
    "inception": (networks.COMPAT_FILE,),
    "inception_2015": tuple(networks.TORCHSCRIPT_FILES),
    "dinov2": networks.DINOV2_FILES,
}


def measure(
    options: Options,
    config: str,
    settings: list[str],
    statistics: int,
    memory: list[int],
    untrained: int | None,
) -> Iterator[Row]:
    """Yields the rows of an evaluation of `config`, of one at size B, of extractors, statistics and memory.

    `untrained` is the number of samples of the evaluation at size B, `statistics` the number of
    features of the statistics, and `memory` the numbers of images of the memory rows.
    """
    machine = [f"machine.device={options.device.type}", f"machine.threads={options.threads}"]
    run = load_run(config, [*settings, *machine])
    if untrained is None:
        untrained = PAPERS_SAMPLES if options.on_gpu else 0
    # The arguments of each kind of row are fields of the row, by which an earlier one is found again.
    cells: dict[str, tuple[list[Row], Callable[..., list[Row]]]] = {
        "evaluate": (
            [{"fingerprint": run.fingerprint(), "samples": run.evaluation.protocol.num_samples}],
            lambda **_: [evaluation_row(run, options)],
        ),
        "untrained": (
            [{"samples": untrained}] if untrained else [],
            lambda samples: [untrained_row(samples, options)],
        ),
        "extractor": (
            [{"size": name} for name in EXTRACTORS],
            lambda size: [extractor_row(run, size, options)],
        ),
        "statistics": ([{"features": statistics}], lambda features: statistics_rows(features)),
        # The peak of a process is that of all it has done, so each reading has a process of its own.
        "memory": (
            [{"images": number} for number in memory],
            lambda images: [in_fresh_process(memory_row, run, images)],
        ),
    }
    for kind, (of_kind, work) in cells.items():
        yield from measure_cells(options, kind, of_kind, work)


def evaluation_row(config: RunConfig, options: Options) -> Row:
    """Measures whole evaluations of an untrained model, which costs what a trained one does."""
    model = build_model(config).to(options.device)
    evaluator = Evaluator(config, options.device)
    evaluator.evaluate_model(model)  # does not count: it may train a classifier and fill caches
    seconds: dict[str, list[float]] = {"sample": [], "evaluate": []}
    for _ in range(options.rounds):
        result = evaluator.evaluate_model(model)
        assert result is not None, "there is one rank"
        seconds["sample"].append(result.sample_seconds)
        seconds["evaluate"].append(result.evaluate_seconds)
    spreads = {part: spread(values) for part, values in seconds.items()}
    samples = config.evaluation.protocol.num_samples
    row: Row = {"kind": "evaluate", "status": "measured", "profile": config.profile}
    row |= {"fingerprint": config.fingerprint(), "samples": samples, "seconds": spreads}
    row["images_per_second"] = {part: samples / value["median"] for part, value in spreads.items()}
    return row


def untrained_row(samples: int, options: Options, profile: str = "imagenet256_b") -> Row:
    """Measures one evaluation of so many samples at the paper's size, of random weights.

    It samples, decodes and compares as the profile's protocol says, with a reference of noise. Only
    the loss on held-out images is not in it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inception = folder / "inception.pth"
        vq16 = folder / "vq16.pt"
        reference = folder / "noise.npz"
        _random_inception(inception)
        torch.save({"model": VQ16Model().state_dict()}, vq16)
        extractor = Extractor("inception", inception, options.device)
        settings = {
            "machine.runs": str(folder),
            "machine.device": options.device.type,
            "machine.threads": options.threads,
            "tokenizer.weights": str(vq16),
            "evaluation.protocol.num_samples": samples,
            "evaluation.protocol.reference": str(reference),
        }
        run = load_run(profile, as_settings(settings))
        count = min(samples, FEATURES_KEPT)
        batch = extractor.entry.batch
        side = run.data.image_size
        batches = (noise(min(batch, count - start), side, start) for start in range(0, count, batch))
        write_reference(reference, ReferenceImages(batches, count, NOISE), extractor)
        found = open_reference(run, str(reference), extractor)
        model = build_model(run).to(options.device)
        tokenizer = load_tokenizer(run, options.device)
        source = measuring.SampledImages(model, tokenizer, run.evaluation.protocol, run.seed, None)
        start = time.perf_counter()
        result = measuring.measure(source, extractor, found)
        seconds = time.perf_counter() - start
    assert result is not None, "there is one rank"
    parts = {"sample": result.sample_seconds, "evaluate": seconds - result.sample_seconds}
    row: Row = {"kind": "untrained", "status": "measured", "profile": run.profile, "size": run.model.size}
    return row | {"samples": samples, "seconds": seconds, "parts": parts}


# ---- extractors


def noise(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Returns random images uint8 (count, side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _random_inception(path: Path) -> None:
    head = {"fc.weight": torch.randn(1008, DIMENSIONS), "fc.bias": torch.zeros(1008)}
    torch.save(inception_layers().state_dict() | head, path)


def _random_dinov2(path: Path) -> None:
    import timm

    network = timm.create_model(networks.DINOV2_MODEL, pretrained=False, num_classes=0)
    torch.save(network.state_dict(), path)


def _random_classifier(path: Path) -> None:
    torch.save(ImageClassifier(10).state_dict(), path)


# Functions that write a file of random weights, with which a network is as fast as with its own.
UNTRAINED: dict[str, Callable[[Path], None]] = {
    "inception": _random_inception,
    "dinov2": _random_dinov2,
    "cifar10": _random_classifier,
    "fashion_mnist": _random_classifier,
    "own": _random_classifier,
}


def find_extractor(config: RunConfig, name: str, device: torch.device) -> tuple[Extractor, str] | None:
    """Returns an extractor, and whether its weights are its `own` or `random`.

    Nothing is downloaded for a benchmark. Returns None if the extractor cannot be built.
    """
    # The digits classifier needs no file, and the others refuse a config of other data than theirs.
    if name == "digits" or find_asset(config.machine.assets, *FILES.get(name, ())) is not None:
        return open_extractor(config, name, device), "own"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "untrained.pth"
        try:
            UNTRAINED[name](path)
        except (KeyError, ImportError):
            return None
        return Extractor(name, path, device), "random"


def extractor_row(config: RunConfig, name: str, options: Options) -> Row:
    """Measures the images per second of an extractor, on the same batch again and again."""
    row: Row = {"kind": "extractor", "size": name}
    found = find_extractor(config, name, options.device)
    if found is None:
        return row | {"status": "not measured: its weights, or timm, are not at hand"}
    extractor, weights = found
    images = noise(extractor.entry.batch, extractor.entry.image_size or IMAGE_SIZE)
    work = {name: lambda: extractor(images)}
    samples = alternate(work, options.device, options.rounds, warmup=1)[name]
    speed = spread([len(images) / sample.wall for sample in samples])
    row |= {"status": "measured", "weights": weights, "batch": len(images)}
    return row | {"images_per_second": speed}


# ---- statistics and memory


def statistics_rows(count: int) -> list[Row]:
    """Measures each statistic once, of `count` features against as many, on the CPU."""
    cpu = torch.device("cpu")
    rng = np.random.default_rng(0)
    ours = np.abs(rng.normal(size=(count, DIMENSIONS))) * rng.random(DIMENSIONS)
    theirs = np.abs(rng.normal(size=(count, DIMENSIONS))) * rng.random(DIMENSIONS)
    # 1. The Gaussians of both, and the features as the metrics need them.
    other = Moments(DIMENSIONS)
    other.add(theirs)
    reference = Reference("", "", count, other.gaussian(), None, theirs)
    root = square_root(reference.pool.cov)
    samples = FeatureCollector(count, EXTRACTORS["dinov2"], cpu)  # with as many subsets as Inception's
    samples.add({"pool": ours})
    gaussian = samples.moments["pool"].gaussian()
    # 2. What is measured.
    works: dict[str, Callable[[], object]] = {
        "moments": lambda: Moments(DIMENSIONS).add(ours),
        "square root of the reference's covariance": lambda: square_root(reference.pool.cov),
        "Fréchet distance with that root at hand": lambda: frechet(gaussian, reference.pool, root),
        "all metrics": lambda: measuring.compare(samples, reference, cpu),
    }
    rows = []
    for what, work in works.items():
        row: Row = {"kind": "statistics", "status": "measured", "what": what, "features": count}
        rows.append(row | {"dimensions": DIMENSIONS, "seconds": timed(work, cpu).wall})
    return rows


class Noise:
    """Random images of digits' size, as an image source. They are made when they are read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, rows: range) -> tuple[np.ndarray, None]:
        """Returns images uint8 (B, 8, 8, 3), without labels."""
        return noise(len(rows), DIGITS_SIZE, rows.start), None


def memory_row(config: RunConfig, images: int) -> Row:
    """Measures the peak resident memory (Linux) of an evaluation of so many images."""
    torch.set_num_threads(config.machine.threads)
    extractor = open_extractor(config, "digits", torch.device("cpu"))
    reference = open_reference(config, "train", extractor)
    measuring.measure(Noise(images), extractor, reference)
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    features = images * DIGITS_DIMENSIONS * 8 / MEBIBYTE
    row: Row = {"kind": "memory", "status": "measured", "images": images}
    return row | {"peak_megabytes": round(peak_kib / 1024), "features_megabytes": round(features)}
