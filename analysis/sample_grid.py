"""Samples of all arms side by side: row for row the same seeds, cell for cell the same class and the same random numbers.

python analysis/sample_grid.py
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from common import load, look, parser
from matplotlib.figure import Figure
from matplotlib.image import imread

from mirai_bench.results.frame import Results
from mirai_bench.results.reading import fetch_grid
from mirai_bench.utils.cli import run, say
from mirai_bench.utils.errors import UserError


def chosen(results: Results, epoch: float | None) -> dict[tuple[str, int], dict[str, Any]]:
    """(arm, seed) → the record at the evaluation nearest to `epoch`, by default each run's last."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for record in results.records:
        key = record["arm"], record["seed"]
        best = found.get(key)
        if best is None or epoch is None or abs(record["epoch"] - epoch) < abs(best["epoch"] - epoch):
            found[key] = record
    return found


def draw(
    results: Results, records: dict[tuple[str, int], dict[str, Any]], seeds: list[int], scratch: Path
) -> Figure:
    """Columns are arms in the sweep's order, rows are seeds; a missing cell stays empty and says so."""
    arms, looks = results.arms, look(results)
    figure = Figure(figsize=(1.9 * len(arms), 1.9 * len(seeds) + 0.5), layout="constrained")
    grid = figure.subplots(len(seeds), len(arms), squeeze=False)
    drawn = 0
    for row, seed in enumerate(seeds):
        for column, arm in enumerate(arms):
            axes, record = grid[row][column], records.get((arm, seed))
            path = fetch_grid(results, record, scratch) if record else None
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if path is None:
                axes.text(0.5, 0.5, "—", ha="center", va="center")
            else:
                axes.imshow(imread(path), interpolation="nearest", cmap="gray")
                axes.set_xlabel(f"epoch {record['epoch']:g}", fontsize=6, labelpad=2)
                drawn += 1
            if row == 0:
                axes.set_title(arm, fontsize=8, color=looks[arm][0])
            if column == 0:
                axes.set_ylabel(f"seed {seed}", fontsize=8)
    if not drawn:
        raise UserError(
            f"{results.axis}: no sample grids are at hand: read them from MLflow, or from the run folders with --runs FOLDER"
        )
    return figure


def command(argv: list[str]) -> int:
    options = parser(
        "sample_grid",
        __doc__.splitlines()[0],
        "python analysis/sample_grid.py --axis foresight_source --seeds 0 1",
    )
    options.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="rows (the first seed of the sweep)"
    )
    options.add_argument("--epoch", type=float, help="the evaluation nearest to it (the last)")
    args = options.parse_args(argv)
    for results in load(args):
        seeds = args.seeds or results.seeds(results.baseline)[:1]
        with tempfile.TemporaryDirectory() as scratch:
            figure = draw(results, chosen(results, args.epoch), seeds, Path(scratch))
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{results.name}_samples.png"
        figure.savefig(path, dpi=160, metadata={"Software": None})
        say(f"wrote {path}")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
