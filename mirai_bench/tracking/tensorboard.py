"""Runs as event files of TensorBoard. Weights & Biases reads them, too (`wandb sync FOLDER`).

They are a view of the journals, as MLflow is: written anew each time, and never read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from mirai_bench.tracking.diagnoses import diagnoses_of
from mirai_bench.tracking.points import PREFIX, allowed, points_of
from mirai_bench.tracking.replay import absolute, cells_of
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.files import atomic

FILE = "events.out.tfevents.mirai_bench"  # TensorBoard finds it by its beginning


def export(folder: RunFolder, out: Path) -> list[Path]:
    """Writes OUT/AXIS/PROFILE/ARM-sSEED/events… for every sweep that has the run.

    Without any it is OUT/FINGERPRINT/events…. Returns the paths of the files.
    """
    folder = absolute(folder)
    events = [event.SerializeToString() for event in events_of(folder)]
    paths = []
    for name in names_of(folder):
        path = out / name / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            writer = RecordWriter(str(temporary))
            try:
                for event in events:
                    writer.write(event)
            finally:
                writer.close()
        paths.append(path)
    return paths


def names_of(folder: RunFolder) -> list[str]:
    """Returns the run's name in each sweep, such as `injection_level/digits/internal-2d-s10`."""
    names = []
    for plan, cell in cells_of(folder):
        # The profile, too: one axis is trained on several of them, with the same arms and seeds.
        names.append(f"{plan['axis']}/{plan['profile']}/{cell['arm']}-s{cell['seed']}")
    return names or [folder.path.name]


def events_of(folder: RunFolder) -> Iterator[Event]:
    """Yields the configuration, the points of the journal at their steps, grids, and diagnoses."""
    config = yaml.safe_dump(folder.config_fields(), sort_keys=False)
    lines = [line for line in folder.journal.lines() if line["kind"] in PREFIX]
    start = lines[0]["time"] if lines else 0.0
    yield Event(wall_time=start, file_version="brain.Event:2")
    yield _event(start, 0, summary.text("config", f"<pre>{config}</pre>"))
    for line in lines:
        for name, value in points_of(line).items():
            yield _event(line["time"], line["step"], summary.scalar(name, value))
        grid = folder.grid_of(line)
        if grid is not None:
            pixels = np.asarray(Image.open(grid).convert("RGB"))
            yield _event(line["time"], line["step"], summary.image("samples", pixels, dataformats="HWC"))
    for line in diagnoses_of(folder):
        for key, value in line["values"].items():
            name = f"diagnose/{line['diagnostic']}/{allowed(key)}"
            yield _event(line["time"], line["step"], summary.scalar(name, value))


def _event(time: float, step: int, content: Any) -> Event:
    return Event(wall_time=time, step=step, summary=content)
