"""Run folders as the trainer leaves them, without training: journals with chosen numbers."""

import json
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.tracking import mlflow_store
from mirai_bench.utils.files import write_text

STEPS_PER_EPOCH = 10
START = 1_700_000_000.0
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def evaluation_line(config, step, metrics, seconds, flops):
    epoch = step / STEPS_PER_EPOCH
    protocol = config.evaluation.protocol
    return {
        "kind": "evaluation",
        "time": START + 1 + step,
        "step": step,
        "epoch": epoch,
        "metrics": metrics,
        "train_flops": flops,
        "train_seconds": seconds,
        "sample_seconds": 1.0,
        "evaluate_seconds": 0.5,
        "protocol": protocol.model_dump(mode="json"),
        "protocol_digest": protocol.digest(),
        "extractor": {"name": "digits", "sha256": "sha256:ab"},
        "reference": {"name": "train", "sha256": "sha256:cd", "n": 1437},
        "fingerprint": config.fingerprint(),
        "profile": config.profile,
        "seed": config.seed,
        "config": config.model_dump(mode="json", exclude={"machine": {"runs", "data"}}),
        "git": {"commit": "0" * 40, "dirty": False},
        "versions": {"python": "3.11"},
        "device": "a CPU",
        "precision": "fp32",
        "parameters": 1000,
        "grid": f"samples/epoch_{epoch:07.2f}.png",
    }


def train_line(step, seconds, flops):
    return {
        "kind": "train",
        "time": START + step,
        "step": step,
        "epoch": step / STEPS_PER_EPOCH,
        "loss": 2.0 - step / 1000,
        "ntp": 1.5,
        "foresight": None,
        "foresight_weight": 2.0,
        "grad_norm": 0.7,
        "lr": 1e-3,
        "skipped": 0,
        "images_per_second": 900.0,
        "train_seconds": seconds,
        "train_flops": flops,
    }


def write_run(
    runs, config, value_at, *, until=None, seconds_per_epoch=2.0, flops_per_epoch=1e12, status="done"
):
    """A run folder whose evaluations are `value_at(epoch)` → metrics, up to epoch `until`."""
    folder = Path(runs) / config.fingerprint()
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json())
    lines = [
        {
            "kind": "start",
            "time": START,
            "step": 0,
            "epoch": 0.0,
            "fingerprint": folder.name,
            "git": {"commit": "0" * 40, "dirty": False},
        }
    ]
    epochs = [e for e in config.evaluation.at if until is None or e <= until]
    for epoch in range(1, int(epochs[-1]) + 1 if epochs else 1):
        cost = (seconds_per_epoch * epoch, flops_per_epoch * epoch)
        lines.append(train_line(epoch * STEPS_PER_EPOCH, *cost))
        if epoch in epochs:
            lines.append(evaluation_line(config, epoch * STEPS_PER_EPOCH, value_at(epoch), *cost))
            (folder / lines[-1]["grid"]).write_bytes(PNG)
    write_text(folder / "journal.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    if status != "running":
        reason = (
            {"reason": "10 updates in a row were not finite", "step": 5}
            if status == "failed"
            else {"step": 120, "seconds": 24.0}
        )
        (folder / f"{status}.json").write_text(json.dumps(reason))
    return folder


def plan_of(sweep, profile="digits"):
    return {
        "axis": sweep.axis,
        "question": sweep.question,
        "baseline": sweep.baseline,
        "profile": profile,
        "arms": sweep.arms,
        "cells": [
            {"arm": cell.arm, "seed": cell.seed, "fingerprint": cell.fingerprint} for cell in sweep.cells
        ],
    }


def write_plan(runs, sweep):
    plan = plan_of(sweep)
    (Path(runs) / "sweeps").mkdir(parents=True, exist_ok=True)
    (Path(runs) / "sweeps" / f"{plan['axis']}-{plan['profile']}.json").write_text(json.dumps(plan))
    (Path(runs) / "sweeps" / "other.check.json").write_text("null")  # the driver's own files are no plans
    return plan


def injection_level(**choices):
    """The shipped sweep with schedule and protocol held fixed, whatever the profile becomes."""
    fixed = [
        "train.epochs=12",
        "evaluation.at=[2,4,6,8,12]",
        "evaluation.protocol={base: digits}",
        "train.lr=0.002",
    ]
    found = load_sweep(SWEEPS / "injection_level.yaml", settings=fixed, **{"seeds": [0, 1, 2]} | choices)
    return replace(found, axis="injection_level", settings=())  # as if the file said it all


@lru_cache
def shared_store(folder):
    """Address of one sqlite store for all test modules: making one costs seconds."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"
    try:
        return mlflow_store.create_store()
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
