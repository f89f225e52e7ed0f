"""What a cell will cost: FLOPs, hours, disk. Counted from the config; hours from runs that were measured on this machine."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from ..compose import Cell
from ..config import RunConfig
from ..flops import ffn_width, training_flops
from ..journal import read_journal
from .plan import Plan, run_dir_of

# Training images of the sets whose size is fixed; a folder's are counted in the manifest of its prepared codes.
IMAGES = {"digits": 1500, "cifar10": 50_000, "imagenet": 1_281_167}
MEASURED_RUNS = 20  # of the newest finished runs, for the pace


@dataclass(frozen=True)
class Cost:
    flops: float | None
    seconds: float | None
    disk: int
    """bytes of its checkpoints"""


def num_images(config: RunConfig) -> int | None:
    """Of the training split; None where that is not known before the data is prepared."""
    data = config.data
    name = data.name if data.dataset == "folder" else data.dataset
    codes = config.machine.codes
    folders = [codes] if codes is not None else (config.machine.runs / "codes").glob(f"{name}-{data.image_size}-*")
    for folder in folders if data.dataset == "folder" else []:
        try:
            return int(json.loads((folder / "train" / "manifest.json").read_bytes())["num_images"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return IMAGES.get(name)


def num_parameters(config: RunConfig) -> tuple[int, int]:
    """(generator, foresight heads), as they are built."""
    m, f, vocabulary = config.model, config.foresight, config.tokenizer.vocabulary
    width, head_width = m.width, m.width // m.heads
    block = width * (m.heads + 2 * m.kv_heads) * head_width + width**2 + 3 * width * ffn_width(width) + 2 * width
    generator = 2 * vocabulary * width + (config.data.classes + 1) * width + m.depth * block + width
    if f.level == "none":
        return generator, 0
    if f.level == "output":
        return generator, (f.k - 1) * width * vocabulary
    sizes = [width, *[f.projector.hidden] * (f.projector.layers - 1), width]
    stacks = [1 if f.projector.shared_trunk and layer < f.projector.layers - 1 else f.k for layer in range(f.projector.layers)]
    return generator, sum(stack * (a + 1) * b for stack, a, b in zip(stacks, sizes, sizes[1:], strict=False))


def checkpoint_bytes(config: RunConfig) -> int:
    """One checkpoint: weights and two moments of generator and heads, and the generator's EMA, in float32."""
    generator, heads = num_parameters(config)
    return 4 * (3 * (generator + heads) + generator)


def cell_flops(config: RunConfig) -> float | None:
    """Training alone; None where the number of images is not known."""
    images = num_images(config)
    if images is None:
        return None
    steps = config.train.epochs * (images // config.train.batch_size)
    return training_flops(config, steps, steps)


def measured_rate(plan: Plan) -> float | None:
    """FLOPs a second of wall-clock, evaluation included: median of the newest finished runs of this profile; None before the first."""
    finished = sorted(plan.runs.glob("*/done.json"), key=lambda path: path.stat().st_mtime, reverse=True)[:MEASURED_RUNS]
    rates = [rate for path in finished if (rate := _rate(path.parent, plan.profile)) is not None]
    return statistics.median(rates) if rates else None


def _rate(run_dir: Path, profile: str) -> float | None:
    """Of a run that was trained in one go."""
    lines = list(read_journal(run_dir / "journal.jsonl"))
    trained = [line for line in lines if line["kind"] == "train"]
    starts = [line for line in lines if line["kind"] == "start"]
    evaluated = [line for line in lines if line["kind"] == "evaluation"]
    if len(starts) != 1 or not trained or not evaluated or evaluated[0].get("profile") != profile:
        return None
    seconds = lines[-1]["time"] - starts[0]["time"]
    return trained[-1]["train_flops"] / seconds if seconds > 0 else None


def cost_of(cell: Cell, rate: float | None) -> Cost:
    flops = cell_flops(cell.config)
    seconds = flops / rate if flops is not None and rate else None
    return Cost(flops, seconds, checkpoint_bytes(cell.config) * cell.config.machine.keep_checkpoints)


def disk_used(cell: Cell) -> int:
    """Bytes of the checkpoints that are there."""
    return sum(path.stat().st_size for path in run_dir_of(cell).glob("checkpoints/step_*/*"))
