"""The table of a sweep: arms against the baseline, seed by seed, the paper's value beside ours. Markdown, CSV, LaTeX and HTML, and the
differences to the baseline as a figure.

python analysis/fid_table.py
"""

import math
import sys

import matplotlib
from common import STYLE, load, look, parser, save
from matplotlib.figure import Figure

from mirai_bench.results.frame import Results, file_stem, lower_is_better
from mirai_bench.results.reading import freeze
from mirai_bench.results.table import Table, build_table
from mirai_bench.results.writers import WRITERS, markdown, p_value
from mirai_bench.utils.cli import run, say
from mirai_bench.utils.errors import unknown

SIGNIFICANT = 0.05  # of the p-values after Holm's correction


def draw_differences(results: Results, table: Table) -> Figure:
    """Each arm's mean difference to the baseline with its 95 % t-interval, one line an arm; filled where the corrected p is below 0.05."""
    metric, looks = table.metrics[0], look(results)
    rows = [(row.arm, row.differences.get(metric)) for row in table.rows if row.arm != table.baseline]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.1 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="black", linewidth=1)
        for place, (arm, change) in enumerate(rows):
            text = "no pair of seeds"
            if change is not None:
                colour, marker = looks[arm]
                known = not math.isnan(change.half)
                reach = [[change.mean - change.low], [change.high - change.mean]] if known else None
                filled = colour if change.p < SIGNIFICANT else "white"
                axes.errorbar(
                    change.mean,
                    place,
                    xerr=reach,
                    color=colour,
                    marker=marker,
                    mfc=filled,
                    markersize=6,
                    capsize=3,
                )
                text = f"p {p_value(change.p)}, n {change.n}"
            axes.annotate(
                text,
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7.5,
                annotation_clip=False,
            )
        axes.set_yticks(range(len(rows)), [arm for arm, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        better = "left" if lower_is_better(metric) else "right"
        axes.set_xlabel(
            f"{metric}: arm minus {table.baseline}, paired by seed ({better} of the line is better)"
        )
        note = f"mean and 95 % t-interval over seeds; filled: Holm-corrected p below {SIGNIFICANT:g}; profile {results.profile}"
        figure.suptitle(f"{table.title}\n{note}", fontsize=9, x=0.01, ha="left", wrap=True)
    return figure


def command(argv: list[str]) -> int:
    options = parser(
        "fid_table", __doc__.splitlines()[0], "python analysis/fid_table.py --axis injection_level"
    )
    options.add_argument("--metric", help="first column (the Fréchet distance that the records carry)")
    options.add_argument("--epoch", type=float, help="evaluation to tabulate (the last)")
    options.add_argument(
        "--no-timing",
        action="store_true",
        help="leave out wall-clock, the one thing that a repetition changes",
    )
    options.add_argument(
        "--freeze",
        action="store_true",
        help="also write the records behind the table to OUT/data/AXIS_PROFILE.jsonl",
    )
    args = options.parse_args(argv)
    for results in load(args):
        if args.metric is not None and args.metric not in results.metrics:
            raise unknown("metric", args.metric, results.metrics)
        table = build_table(results, metric=args.metric, epoch=args.epoch, timing=not args.no_timing)
        args.out.mkdir(parents=True, exist_ok=True)
        for kind, write in WRITERS.items():
            path = args.out / f"{results.name}.{kind}"
            path.write_text(write(table), encoding="utf-8")
            say(f"wrote {path}")
        if len(table.rows) > 1:
            save(draw_differences(results, table), args.out, f"{results.name}_differences")
        if args.freeze:
            freeze(results, args.out / "data" / f"{file_stem(f'{results.axis}_{results.profile}')}.jsonl")
        print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
