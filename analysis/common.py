"""What every script here shares: where the records come from, and how a figure becomes the same bytes each time."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mirai_bench.results.frame import Results, with_protocol
from mirai_bench.results.reading import read_journals, read_jsonl, read_mlflow
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError, unknown

MAIN_JOB = "python -m mirai_bench.sweep sweeps/injection_level.yaml"
# Paul Tol's and Okabe & Ito's colour-blind-safe colours; the baseline is black. With more arms than colours the marker tells them apart.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933", "#332288", "#888888", "#661100", "#44AA99",
)  # fmt: skip
MARKERS = "osD^vP"
STYLE = {
    "svg.hashsalt": "mirai_bench", "pdf.fonttype": 42, "font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip
NO_DATES = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}


def parser(script: str, description: str, example: str) -> argparse.ArgumentParser:
    """With the options that choose records. Without any: every sweep in the MLflow store of the current folder."""
    made = argparse.ArgumentParser(
        prog=f"python analysis/{script}.py", description=description, epilog=f"example: {example}"
    )
    made.add_argument("--axis", help="only this axis, for instance injection_level")
    made.add_argument("--profile", help="only this profile, for instance digits")
    made.add_argument("--sweep", metavar="ID", help="only this MLflow parent run")
    made.add_argument(
        "--protocol", metavar="DIGEST", help="only evaluations under this protocol (digest or name)"
    )
    made.add_argument(
        "--records",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="frozen records (reports/data/*.jsonl); files of one sweep are joined",
    )
    made.add_argument("--runs", type=Path, metavar="FOLDER", help="read the journals in this folder of runs")
    made.add_argument(
        "--out", type=Path, default=Path("reports"), metavar="FOLDER", help="where to write (reports)"
    )
    return made


def load(args: argparse.Namespace) -> list[Results]:
    """The sweeps that the arguments name and that have records. Raises UserError, saying what to run, where there is nothing to read."""
    if args.records:
        found, where = read_jsonl(args.records), "these files"
    elif args.runs:
        found, where = read_journals(args.runs), f"{args.runs} (no planned sweep)"
    else:
        found, where = (
            read_mlflow(sweep=args.sweep),
            "MLflow (MLFLOW_TRACKING_URI, or mlflow.db in this folder)",
        )
    if not any(results.records for results in found):
        raise UserError(f"there are no evaluations to read in {where}. Run a sweep first: {MAIN_JOB}")
    for name in ("axis", "profile"):
        asked, known = getattr(args, name), [getattr(results, name) for results in found]
        if asked is not None and asked not in known:
            raise unknown(name, asked, dict.fromkeys(known))
        found = [results for results in found if asked in (None, getattr(results, name))]
    for results in found:
        if not results.records:
            say(f"{results.axis} ({results.profile}): no evaluation yet, left out")
    kept = [results for results in found if results.records]
    if not kept:
        raise UserError(
            f"{args.axis or 'this sweep'} has no evaluation yet: let its sweep run on, {MAIN_JOB.rsplit(' ', 1)[0]} sweeps/…"
        )
    return [with_protocol(results, args.protocol) if args.protocol else results for results in kept]


def look(results: Results) -> dict[str, tuple[str, str]]:
    """arm → (colour, marker); the same arm looks the same in every figure of its sweep."""
    others = [arm for arm in results.arms if arm != results.baseline]
    looks = {
        arm: (COLOURS[i % len(COLOURS)], MARKERS[1 + i // 6 % (len(MARKERS) - 1)])
        for i, arm in enumerate(others)
    }
    return {results.baseline: ("#000000", MARKERS[0])} | looks


def save(figure: Figure, out: Path, stem: str, kinds: tuple[str, ...] = ("svg", "pdf", "png")) -> None:
    """The same records give the same bytes: no dates, no random ids."""
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for kind in kinds:
            figure.savefig(out / f"{stem}.{kind}", metadata=NO_DATES[kind], dpi=160)
            say(f"wrote {out / f'{stem}.{kind}'}")
