"""Puts samples of all arms side by side.

    python analysis/sample_grid.py

A row has one seed. In all its cells the same place has the same class and the same random numbers.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from common import load, look, parser, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from mirai_bench.results.frame import Results
from mirai_bench.results.notes import MISSING
from mirai_bench.results.reading import fetch_grid
from mirai_bench.utils.cli import Numbers, run
from mirai_bench.utils.errors import UserError

Records = dict[tuple[str, int], dict[str, Any]]  # by arm and seed
MOST_COLUMNS = 8


def chosen(results: Results, epoch: float | None) -> Records:
    """Returns the record of each run at the evaluation nearest to `epoch`, by default its last."""
    found: Records = {}
    for record in results.records:
        key = (record["arm"], record["seed"])
        # Records come in the order of their steps, so that without `epoch` the last one stays.
        best = found.get(key)
        if best is None or epoch is None or abs(record["epoch"] - epoch) < abs(best["epoch"] - epoch):
            found[key] = record
    return found


def draw(results: Results, records: Records, seeds: list[int], scratch: Path) -> Figure:
    """Returns a figure whose columns are arms in the sweep's order and whose rows are seeds.

    Arms that one row has no room for follow below. A missing cell stays empty. Raises UserError if all
    are missing.
    """
    arms = results.arms
    looks = look(results)
    bands = -(-len(arms) // MOST_COLUMNS)  # rounded up
    columns = -(-len(arms) // bands)
    figure = Figure(figsize=(1.9 * columns, bands * (1.9 * len(seeds) + 0.5)), layout="constrained")
    grid = figure.subplots(bands * len(seeds), columns, squeeze=False)
    # 1. The images, of which each may be a download.
    paths = {}
    for (arm, seed), record in records.items():
        if seed in seeds:
            paths[arm, seed] = fetch_grid(results, record, scratch)
    if not any(paths.values()):
        raise UserError(
            f"{results.axis}: no sample grids are at hand: read them from MLflow, or from the run "
            "folders with --runs FOLDER"
        )
    # 2. The cells.
    for number, arm in enumerate(arms):
        band, column = divmod(number, columns)
        for row, seed in enumerate(seeds):
            axes = grid[band * len(seeds) + row][column]
            _draw_cell(axes, records.get((arm, seed)), paths.get((arm, seed)))
            if row == 0:
                axes.set_title(arm, fontsize=8, color=looks[arm][0])
            if column == 0:
                axes.set_ylabel(f"seed {seed}", fontsize=8)
    for axes in grid[(bands - 1) * len(seeds) :, len(arms) - (bands - 1) * columns :].flat:
        axes.remove()
    return figure


def _draw_cell(axes: Axes, record: dict[str, Any] | None, path: Path | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if record is None or path is None:
        axes.text(0.5, 0.5, MISSING, ha="center", va="center")
        return
    axes.imshow(imread(path), interpolation="nearest", cmap="gray")
    axes.set_xlabel(f"epoch {record['epoch']:g}", fontsize=6, labelpad=2)


def command(argv: list[str]) -> int:
    """Runs the script. Writes one figure per sweep and prints its path."""
    example = "python analysis/sample_grid.py --axis foresight_source --seeds 10 11"
    options = parser("sample_grid", __doc__.splitlines()[0], example)
    seeds = "rows; default the first seed of the sweep"
    options.add_argument("--seeds", nargs="+", action=Numbers, default=[], metavar="SEED", help=seeds)
    options.add_argument("--epoch", type=float, help="the evaluation nearest to it; default the last")
    args = options.parse_args(argv)
    for results in load(args):
        rows = args.seeds or [results.cells[0]["seed"]]
        with tempfile.TemporaryDirectory() as scratch:
            figure = draw(results, chosen(results, args.epoch), rows, Path(scratch))
        stem = f"{results.name}_samples"
        save(figure, args.out, stem, kinds=("png",))  # pixels gain nothing from a vector format
        print(args.out / f"{stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
