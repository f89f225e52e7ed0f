"""What an evaluation costs on this machine: images/s through each extractor, seconds for the statistics, peak memory at two sizes.

python -m mirai_bench.evaluate benchmark --out reports/benchmarks/evaluation.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import provenance
from .cli import say
from .compose import load_run
from .config import RunConfig
from .errors import UserError
from .extractors import EXTRACTORS, Collected, open_extractor
from .journal import write_atomic
from .measure import Stored, compare, measure
from .metrics import Moments, frechet, square_root
from .networks import COMPAT_FILE, DINOV2_FILES, TORCHSCRIPT_FILES, find_asset
from .references import Reference, open_reference

WIDTH = 2048
SIDES = {"digits": 8}  # pixels of the images; elsewhere 32, as CIFAR-10's (every extractor resizes to its own side)


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}


def noise(n: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def extractor_speed(config: RunConfig, name: str, device: torch.device) -> dict[str, Any]:
    """A few batches after a first one; a note where the weights are not at hand (nothing is downloaded for a benchmark)."""
    files = {"inception": (COMPAT_FILE,), "inception_2015": TORCHSCRIPT_FILES, "dinov2": DINOV2_FILES}
    if name in files and find_asset(config, *files[name]) is None:
        return {"note": "weights are not at hand"}
    extractor, count = open_extractor(config, name, device), 4 if device.type == "cuda" else 2
    images = noise(extractor.entry.batch * count, SIDES.get(name, 32))
    extractor(images[: extractor.entry.batch])
    spent = timed(lambda: extractor(images))
    return spent | {"images": len(images), "images_per_second": round(len(images) / spent["seconds"], 1)}


def statistics_speed(n: int) -> dict[str, Any]:
    """Each statistic once for n features of 2,048 dimensions against as many."""
    rng = np.random.default_rng(0)
    x, y = (np.abs(rng.normal(size=(n, WIDTH))) * rng.random(WIDTH) for _ in range(2))
    moments, other = Moments(WIDTH), Moments(WIDTH)
    other.add(y)
    found: dict[str, Any] = {"n": n, "dimensions": WIDTH, "moments": timed(lambda: moments.add(x))}
    ours, theirs = moments.gaussian(), other.gaussian()
    found["square_root_of_reference"] = timed(lambda: square_root(theirs.cov))
    root = square_root(theirs.cov)
    found["frechet_with_root_at_hand"] = timed(lambda: frechet(ours, theirs, root))
    entry = EXTRACTORS["dinov2"]  # names and KID subsets as Inception has them
    samples = Collected(n, entry)
    samples.add({"pool": x})
    found["all_but_the_extractor"] = timed(lambda: compare(samples, Reference("", "", n, theirs, None, y), torch.device("cpu")))
    return found


class Noise:
    """n digits-sized images, made as they are asked for."""

    labels = None

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, rows: range) -> np.ndarray:
        return noise(len(rows), 8, rows.start)


def peak_megabytes(config: RunConfig, n: int) -> None:
    """Prints the peak resident memory of an evaluation of n images, without their own making (Linux)."""
    extractor = open_extractor(config, "digits", torch.device("cpu"))
    reference = open_reference(config, "train", extractor)
    spent = timed(lambda: measure(Stored(Noise(n)), extractor, reference))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024  # ru_maxrss would be the parent's, where that was larger
    print(json.dumps({"images": n, "peak_megabytes": round(peak), "features_megabytes": round(n * 64 * 8 / 2**20)} | spent))


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m mirai_bench.evaluate benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file, also printed")
    parser.add_argument("--config", default="digits", metavar="PROFILE|FILE")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="for instance machine.assets=FOLDER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--statistics", type=int, default=5000, metavar="N", help="features of the statistics")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[5000, 50_000], metavar="N", help="images of the memory readings"
    )
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    config, device = load_run(Path(args.config), args.set), torch.device(args.device)
    if args.peak is not None:
        peak_megabytes(config, args.peak)
        return 0
    if args.out is not None and not args.out.absolute().parent.is_dir():
        raise UserError(f"--out {args.out}: its folder is not there")
    found = run_benchmark(config, device, args, argv)
    if args.out is not None:
        write_atomic(args.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 0


def run_benchmark(config: RunConfig, device: torch.device, args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.cpu_name()
    found: dict[str, Any] = {"device": name, "threads": torch.get_num_threads(), "versions": provenance.versions()}
    found["load_average_at_start"] = round(os.getloadavg()[0], 2)
    found["extractors"] = {}
    for extractor in EXTRACTORS:
        say(f"extractor {extractor}")
        found["extractors"][extractor] = extractor_speed(config, extractor, device)
    say("statistics")
    found["statistics"] = statistics_speed(args.statistics)
    found["memory"] = []
    for n in args.memory:
        say(f"memory at {n:,} images")
        again = [sys.executable, "-m", "mirai_bench.evaluate", "benchmark", *argv, "--peak", str(n)]
        found["memory"].append(json.loads(subprocess.run(again, capture_output=True, text=True, check=True).stdout))
    return found
