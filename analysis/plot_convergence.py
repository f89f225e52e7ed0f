"""Draws a metric against epochs, training FLOPs or time, and below it what each arm changes.

    python analysis/plot_convergence.py

Writes SVG, PDF and PNG (the same bytes for the same records), and the speed-up as Markdown. If a
sweep has many arms, each of them gets its own panel, together with the baseline.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import matplotlib
from common import STYLE, add_figure, add_one_off, load, parser, save, write
from convergence import BANDS, draw
from fd_targets import read_target, target_table
from matplotlib.figure import Figure
from speedup import speedup_table
from ticks import LOG_FROM

from mirai_bench.results.cost import AXES, one_off_notes, with_one_off, without_one_off
from mirai_bench.results.frame import file_stem
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import unknown


def _add_notes(figure: Figure, notes: Sequence[str]) -> None:
    """Adds sentences on the costs to the caption."""
    if notes:
        with matplotlib.rc_context(STYLE):
            figure.suptitle(
                "\n".join([figure.get_suptitle(), *notes]), fontsize=9, x=0.01, ha="left", wrap=True
            )


def command(argv: list[str]) -> int:
    """Runs the script. Writes the figures and the speed-up, which it also prints."""
    example = "python analysis/plot_convergence.py --axis foresight_source --x flops"
    options = parser("plot_convergence", __doc__.splitlines()[0], example)
    add = options.add_argument
    bands = (
        "seeds: a thin line for each; minmax: least to greatest; t: the t-interval of the mean; "
        "default auto: seeds where more than three arms share a panel, else minmax"
    )
    scales = f"scale of the metric; default auto: log beyond a factor of {LOG_FROM:g}, unless it is a share"
    add("--metric", help="what to draw; default the Fréchet distance that the records carry")
    add("--x", choices=AXES, default="epochs", help="what the metric is drawn against; default epochs")
    add("--band", choices=("auto", *BANDS), default="auto", help=bands)
    add("--scale", choices=("auto", "linear", "log"), default="auto", help=scales)
    add("--no-timing", action="store_true", help="no speed-up in seconds: the machine was shared")
    add_one_off(options)
    add_figure(options)
    args = options.parse_args(argv)
    for loaded in load(args):
        results = without_one_off(loaded) if args.without_one_off else with_one_off(loaded)
        notes = one_off_notes(loaded, not args.without_one_off, timing=not args.no_timing)
        metric = args.metric or results.primary
        if metric not in results.choices:
            raise unknown("metric", metric, results.choices)
        # 1. The figure. Its name says what is not drawn by default.
        stem = f"{results.name}_{file_stem(metric)}" if args.metric else results.name
        figure = draw(results, metric, args.x, args.band, args.scale, args.width)
        if args.x != "epochs":
            _add_notes(figure, notes)
        save(figure, args.out, stem if args.x == "epochs" else f"{stem}_{args.x}", title=args.title)
        # 2. The speed-up, which is read off the same curves.
        text = speedup_table(results, metric, timing=not args.no_timing)
        target = read_target(results, metric)
        if target is not None:
            text += "\n" + target_table(results, metric, target, timing=not args.no_timing)
        text += "".join(f"\n{note}\n" for note in notes)
        write(args.out, f"{stem}_speedup.md", text)
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
