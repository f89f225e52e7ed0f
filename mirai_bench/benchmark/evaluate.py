"""`benchmark evaluate`: seconds of an evaluation of the digits profile (or --config), sampling and measuring apart."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..compose import load_run
from ..evaluate import evaluate_model
from ..model import build_model
from .options import Options
from .timing import spread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=Path("digits"), help="a run file or the name of a profile (default: digits)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="settings")


def measure(args: argparse.Namespace, options: Options) -> list[dict[str, Any]]:
    """An untrained model costs what a trained one does. The first evaluation, which may make caches, does not count."""
    config = load_run(
        args.config, [*args.settings, f"machine.device={options.device.type}", f"machine.threads={options.threads}"]
    )
    model = build_model(config).to(options.device)
    results = [evaluate_model(model, config, options.device) for _ in range(1 + options.rounds)][1:]
    number = config.evaluation.protocol.num_samples
    seconds = {part: spread([getattr(r, f"{part}_seconds") for r in results if r]) for part in ("sample", "evaluate")}
    return [
        {
            "kind": "evaluate", "status": "measured", "profile": config.profile, "samples": number, "seconds": seconds,
            "images_per_second": {part: number / value["median"] for part, value in seconds.items()},
        }
    ]  # fmt: skip
