"""Where and how a run is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mirai_bench.config.sections import Amount, Positive, PositiveAmount, Section, UserPath


class MachineConfig(Section):
    """Where and how the run is computed. Not fingerprinted.

    It changes nothing that is computed beyond rounding, with one exception: `micro_batches` and
    `workers` decide which images are in one forward pass. On them depend the dropout masks, the
    image whose features `foresight.source: shuffled` gives to another one, and the mean that
    `foresight.target_norm: center` takes away. Otherwise the updates are the same. The record says
    how many there were.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device. `auto` is a GPU if one is visible, and the CPU otherwise."""
    threads: Positive = 1
    """Number of CPU threads of each process."""
    # Folders: these four are utils.assets.LOCAL_FOLDERS, which records leave out.
    runs: UserPath = Path("runs")
    """Folder of runs, caches and prepared codes."""
    data: UserPath | None = None
    """Folder or file of the images."""
    codes: UserPath | None = None
    """Folder of prepared codes. By default the one of this data set and tokenizer in `runs`."""
    assets: UserPath | None = None
    """Folder of downloaded weights and reference files. By default $MIRAI_BENCH_ASSETS."""
    log_every: Positive = 10
    """Number of steps between two lines of the journal. Reading the losses waits for the device."""
    checkpoint_every: PositiveAmount = 1.0
    """Number of epochs between two checkpoints."""
    keep_checkpoints: Positive = 2
    """Number of newest checkpoints that are kept. Two, so that a damaged one can be passed over."""
    keep_at: tuple[Positive, ...] = ()
    """Epochs after which the EMA and the trained weights with their heads are kept for good, for \
diagnostics: files of their own, in the run's folder `kept`."""
    compile: Literal["auto"] | bool = "auto"
    """Whether model, teacher and losses are compiled with torch.compile. `auto` compiles on a GPU \
for widths of 384 and more, where the run outweighs the minute or two that it takes."""
    deterministic: bool = False
    """Whether a GPU adds up in a fixed order, so that a run is the same bit for bit on one kind of card. \
It is slower; by how much is not measured. A CPU does so anyway."""
    micro_batches: Positive = 1
    """Number of micro-batches in which a process computes its share of the batch, one after the \
other, to save memory."""
    # What a trial of a sweep asks Ray for.
    cpus: Positive = 1
    """Number of CPUs of one trial of a sweep."""
    gpus: Amount = 0
    """Number of GPUs of one trial of a sweep. 0.25 packs four trials on one GPU."""
    workers: Positive = 1
    """Number of data-parallel processes of one trial of a sweep."""
