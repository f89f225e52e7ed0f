"""The table of a sweep: arms against the baseline, seed by seed, the paper's value beside ours. Markdown, CSV, LaTeX and HTML.

python analysis/fid_table.py
"""

import sys

from common import load, parser

from mirai_bench.cli import run, say
from mirai_bench.errors import unknown
from mirai_bench.results import file_stem, freeze
from mirai_bench.tables import WRITERS, build_table, markdown


def command(argv: list[str]) -> int:
    options = parser("fid_table", __doc__.splitlines()[0], "python analysis/fid_table.py --axis injection_level")
    options.add_argument("--metric", help="first column (the Fréchet distance that the records carry)")
    options.add_argument("--epoch", type=float, help="evaluation to tabulate (the last)")
    options.add_argument("--no-timing", action="store_true", help="leave out wall-clock, the one thing that a repetition changes")
    options.add_argument(
        "--freeze", action="store_true", help="also write the records behind the table to OUT/data/AXIS_PROFILE.jsonl"
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
        if args.freeze:
            freeze(results, args.out / "data" / f"{file_stem(f'{results.axis}_{results.profile}')}.jsonl")
        print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
