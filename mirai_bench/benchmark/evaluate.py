"""`benchmark evaluate`: a whole evaluation of the digits profile (or --config), images/s through each feature extractor, seconds of the
statistics, and peak memory at two numbers of images."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.timing import alternate, spread, timed
from mirai_bench.config.load import load_run
from mirai_bench.config.run_config import RunConfig
from mirai_bench.evaluate.evaluation import evaluate_model
from mirai_bench.evaluate.extractors import EXTRACTORS, Collected, Extractor, open_extractor
from mirai_bench.evaluate.measure import Stored, compare
from mirai_bench.evaluate.measure import measure as measure_images
from mirai_bench.evaluate.metrics import Moments, frechet, square_root
from mirai_bench.evaluate.networks import COMPAT_FILE, DINOV2_FILES, DINOV2_MODEL, TORCHSCRIPT_FILES
from mirai_bench.evaluate.references import Reference, open_reference
from mirai_bench.model.transformer import build_model
from mirai_bench.utils.assets import find_asset

WIDTH = 2048  # of Inception's features


SIDES = {
    "digits": 8
}  # pixels of the images; elsewhere 32, as CIFAR-10's (every extractor resizes to its own side)


FILES = {"inception": (COMPAT_FILE,), "inception_2015": tuple(TORCHSCRIPT_FILES), "dinov2": DINOV2_FILES}


Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("digits"),
        help="a run file or the name of a profile (default: digits)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="settings")
    parser.add_argument(
        "--statistics", type=int, default=5000, metavar="N", help="features of the statistics (default: 5000)"
    )
    parser.add_argument(
        "--memory",
        type=int,
        nargs="*",
        default=[5000, 50_000],
        metavar="N",
        help="images of the memory readings (5000 50000)",
    )


def measure(args: argparse.Namespace, options: Options) -> list[Row]:
    settings = [*args.settings, f"machine.device={options.device.type}", f"machine.threads={options.threads}"]
    config = load_run(args.config, settings)
    rows = [whole(config, options), *(extractor_speed(config, name, options) for name in EXTRACTORS)]
    rows += statistics_speed(args.statistics)
    for n in args.memory:
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # whose peak is this reading's alone
            rows.append(
                {"kind": "memory", "status": "measured"} | fresh.submit(peak_memory, config, n).result()
            )
    return rows


def whole(config: RunConfig, options: Options) -> Row:
    """An untrained model costs what a trained one does. The first evaluation, which may make caches, does not count."""
    model = build_model(config).to(options.device)
    results = [evaluate_model(model, config, options.device) for _ in range(1 + options.rounds)][1:]
    number = config.evaluation.protocol.num_samples
    seconds = {
        part: spread([getattr(r, f"{part}_seconds") for r in results if r]) for part in ("sample", "evaluate")
    }
    return {
        "kind": "evaluate", "status": "measured", "profile": config.profile, "samples": number, "seconds": seconds,
        "images_per_second": {part: number / value["median"] for part, value in seconds.items()},
    }  # fmt: skip


def noise(n: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def random_inception(path: Path) -> None:
    from torch_fidelity import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: Any) -> None:
            pass

    torch.save({}, path)
    torch.save(Untrained("untrained", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)


def random_dinov2(path: Path) -> None:
    import timm

    torch.save(timm.create_model(DINOV2_MODEL, pretrained=False, num_classes=0).state_dict(), path)


# Networks that are as fast untrained: name → writes a file of random weights.
UNTRAINED: dict[str, Callable[[Path], None]] = {"inception": random_inception, "dinov2": random_dinov2}


def opened(config: RunConfig, name: str, device: torch.device) -> tuple[Extractor, str] | None:
    """The extractor, and which weights it has; None where it cannot be made (nothing is downloaded for a benchmark)."""
    if name not in FILES or find_asset(config, *FILES[name]) is not None:
        return open_extractor(config, name, device), "own"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "untrained.pth"
        try:
            UNTRAINED[name](path)
        except (KeyError, ImportError):
            return None
        return Extractor(name, path, device), "random"


def extractor_speed(config: RunConfig, name: str, options: Options) -> Row:
    """A batch again and again."""
    row = {"kind": "extractor", "size": name}
    made = opened(config, name, options.device)
    if made is None:
        return row | {"status": "not measured: its weights, or timm, are not at hand"}
    extractor, weights = made
    images = noise(extractor.entry.batch, SIDES.get(name, 32))
    samples = alternate({name: lambda: extractor(images)}, options.device, options.rounds, warmup=1)[name]
    return row | {
        "status": "measured",
        "weights": weights,
        "batch": len(images),
        "images_per_second": spread([len(images) / s.wall for s in samples]),
    }


def statistics_speed(n: int) -> list[Row]:
    """Each statistic once for n features of 2,048 dimensions against as many, on the CPU, where they are computed."""
    rng = np.random.default_rng(0)
    x, y = (np.abs(rng.normal(size=(n, WIDTH))) * rng.random(WIDTH) for _ in range(2))
    moments, other = Moments(WIDTH), Moments(WIDTH)
    cpu = torch.device("cpu")
    other.add(y)
    theirs = other.gaussian()
    spent = {"moments": timed(lambda: moments.add(x), cpu)}
    ours = moments.gaussian()
    spent["square root of the reference's covariance"] = timed(lambda: square_root(theirs.cov), cpu)
    root = square_root(theirs.cov)
    spent["Fréchet distance with that root at hand"] = timed(lambda: frechet(ours, theirs, root), cpu)
    entry = EXTRACTORS["dinov2"]  # names and KID subsets as Inception has them
    samples = Collected(n, entry)
    samples.add({"pool": x})
    spent["all metrics"] = timed(lambda: compare(samples, Reference("", "", n, theirs, None, y), cpu), cpu)
    return [
        {
            "kind": "statistics",
            "status": "measured",
            "what": what,
            "features": n,
            "dimensions": WIDTH,
            "seconds": sample.wall,
        }
        for what, sample in spent.items()
    ]


class Noise:
    """n digits-sized images, made as they are asked for."""

    labels = None

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, rows: range) -> np.ndarray:
        return noise(len(rows), 8, rows.start)


def peak_memory(config: RunConfig, n: int) -> Row:
    """Peak resident memory of an evaluation of n images, which are not kept (Linux)."""
    torch.set_num_threads(config.machine.threads)
    extractor = open_extractor(config, "digits", torch.device("cpu"))
    reference = open_reference(config, "train", extractor)
    measure_images(Stored(Noise(n)), extractor, reference)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    return {"images": n, "peak_megabytes": round(peak), "features_megabytes": round(n * 64 * 8 / 2**20)}
