"""What every script here shares: where the records come from, and how figures are drawn and saved."""

from __future__ import annotations

import argparse
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from pydantic import ValidationError

from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cost import num_images
from mirai_bench.model.one_off import one_off_flops
from mirai_bench.results.frame import Results, with_protocol
from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.reading import read_journals, read_mlflow
from mirai_bench.results.stats import Estimate
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.files import write_bytes, write_text
from mirai_bench.utils.outputs import OUT, output_folder


def logger(name: str) -> logging.Logger:
    """Returns the logger of a script, whose messages commands show as they show the package's."""
    return logging.getLogger(f"mirai_bench.{name}")


log = logger(__name__)

MAIN_JOB = "python -m mirai_bench.sweep sweeps/injection_level.yaml"
STYLE = matplotlib.rc_params_from_file(
    str(Path(__file__).with_name("style.mplstyle")), use_default_template=False
)
# The baseline is black and has the first marker. Of 12 colours and 7 other markers each arm
# takes the next one, so that no two of 84 arms look the same.
BLACK = "#000000"
COLOURS = STYLE["axes.prop_cycle"].by_key()["color"]
MARKERS = "osD^vPX<"
FEWEST_TICKS = 3  # of an axis
DOTS = 160  # of a PNG, per inch
WIDTHS = (2.5, 40.0)  # inches that a figure may be wide
NAMED_WIDTHS = {"column": 3.3, "page": 6.9}  # inches, of a journal's column and page
# Without dates and names of programs the same records give the same bytes.
NO_DATES = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}


# ---- the records


def parser(script: str, description: str, example: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that choose records.

    Without any of them a script reads every sweep in the MLflow store of the current folder.
    """
    result = argparse.ArgumentParser(
        prog=f"python analysis/{script}.py", description=description, epilog=f"example: {example}"
    )
    add = result.add_argument
    frozen = "frozen records (reports/data/*.jsonl); files of one sweep are joined"
    add("--axis", help="only this axis, for instance injection_level")
    add("--profile", help="only this profile, for instance digits")
    add("--sweep", metavar="ID", help="only this MLflow parent run")
    add("--protocol", metavar="DIGEST", help="only evaluations under this protocol (digest or name)")
    add("--records", nargs="+", type=Path, metavar="FILE", help=frozen)
    add("--runs", type=Path, metavar="FOLDER", help="read the journals in this folder of runs")
    add_out(result)
    return result


def add_out(options: argparse.ArgumentParser) -> None:
    """Adds the option that says where to write."""
    options.add_argument(
        "--out",
        type=output_folder,
        default=OUT,
        metavar="FOLDER",
        help="where to write; default %(default)s",
    )


def add_one_off(options: argparse.ArgumentParser) -> None:
    """Adds the option that leaves out one-off costs."""
    text = "leave out what the teacher of an arm cost before the first step; the output says so"
    options.add_argument("--without-one-off", action="store_true", help=text)


def add_figure(options: argparse.ArgumentParser) -> None:
    """Adds the options for figures and tables that go into a paper."""
    named = " or ".join(f"{name} ({inches:g})" for name, inches in NAMED_WIDTHS.items())
    wide = f"width of the figure: {named}, or so many inches; its letters keep their size"
    options.add_argument("--width", type=_width, metavar="WIDTH", help=wide)
    untitled = "no question and no legend above the figure: they belong in the caption"
    options.add_argument("--no-title", dest="title", action="store_false", help=untitled)


def _width(text: str) -> float:
    """Is the `type` of an option of argparse. Raises UserError for what is no width of a figure."""
    try:
        width = NAMED_WIDTHS[text] if text in NAMED_WIDTHS else float(text)
    except ValueError:
        width = math.nan
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        names = " or ".join(NAMED_WIDTHS)
        raise UserError(f"--width {text}: write {names}, or inches from {WIDTHS[0]:g} to {WIDTHS[1]:g}")
    return width


def load(args: argparse.Namespace) -> list[Results]:
    """Returns the sweeps that the arguments name and that have records.

    Raises UserError, which says what to run, if there is nothing to read.
    """
    # 1. Everything that is there.
    found, where = _read(args)
    if not any(results.records for results in found):
        raise UserError(f"there are no evaluations to read in {where}. Run a sweep first: {MAIN_JOB}")
    # 2. What was asked for. A misspelt name is an error, and not an empty figure.
    for name in ("axis", "profile"):
        wanted = getattr(args, name)
        known = [getattr(results, name) for results in found]
        if wanted is not None and wanted not in known:
            raise unknown(name, wanted, dict.fromkeys(known))
        found = [results for results in found if wanted in (None, getattr(results, name))]
    # 3. What has records, under one protocol if one was asked for.
    kept = []
    for results in found:
        if results.records:
            results = replace(results, records=[_counted(record) for record in results.records])
            kept.append(with_protocol(results, args.protocol) if args.protocol else results)
        else:
            log.info(f"{results.axis} ({results.profile}): no evaluation yet, left out")
    if not kept:
        sweep = f"{MAIN_JOB.rsplit(' ', 1)[0]} sweeps/…"
        raise UserError(f"{args.axis or 'this sweep'} has no evaluation yet: let its sweep run on, {sweep}")
    return kept


def _counted(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record with the one-off FLOPs that it is too old to have.

    They are counted from its configuration, if that can still be read. Its seconds stay unknown.
    """
    if "one_off_flops" in record:
        return record
    try:
        config = RunConfig(**record["run"]["config"])
    except (TypeError, ValidationError):
        return record
    return record | {"one_off_flops": one_off_flops(config, num_images(config))}


def _read(args: argparse.Namespace) -> tuple[list[Results], str]:
    """Returns all sweeps, and in words where they were read."""
    if args.records:
        return read_jsonl(args.records), "these files"
    if args.runs:
        return read_journals(args.runs), f"{args.runs} (no planned sweep)"
    return read_mlflow(args.sweep), "MLflow (MLFLOW_TRACKING_URI, or mlflow.db in this folder)"


# ---- figures


def look(results: Results) -> dict[str, tuple[str, str]]:
    """Returns (colour, marker) of each arm. An arm looks the same in every figure of its sweep."""
    return looks_of(results.arms, results.baseline)


def looks_of(arms: Sequence[str], baseline: str) -> dict[str, tuple[str, str]]:
    """Returns (colour, marker) of each of these arms, in the order of their sweep."""
    looks = {baseline: (BLACK, MARKERS[0])}
    others = [arm for arm in arms if arm != baseline]
    return looks | {arm: nth_look(i) for i, arm in enumerate(others)}


def nth_look(i: int) -> tuple[str, str]:
    """Returns (colour, marker) of the i-th arm that is no baseline."""
    # The baseline's marker, number 0, is left out.
    return COLOURS[i % len(COLOURS)], MARKERS[1 + i % (len(MARKERS) - 1)]


def draw_change(
    axes: Axes, place: float, change: Estimate, colour: str, marker: str, filled: bool = True
) -> None:
    """Draws a difference to the baseline and its interval, at a height."""
    reach = None if math.isnan(change.half) else change.half  # one seed has no interval
    style: dict[str, Any] = {"color": colour, "marker": marker, "mfc": colour if filled else "white"}
    axes.errorbar(change.mean, place, xerr=reach, markersize=6, capsize=3, **style)


def percent_axis(axes: Axes, which: Literal["x", "y"] = "x", most: int = 8) -> None:
    """Labels an axis of logarithms of ratios, on which all is drawn, with round changes in per cent.

    There are about `most` of them, or fewer.
    """
    changes = np.array([-80, -60, -40, -20, 0, 25, 50, 100, 200, 500])  # per cent
    axis = axes.xaxis if which == "x" else axes.yaxis
    least, greatest = 100 * np.expm1(axes.get_xlim() if which == "x" else axes.get_ylim())
    if not FEWEST_TICKS <= ((changes > least) & (changes < greatest)).sum() <= most:
        changes = np.asarray(MaxNLocator(nbins=most).tick_values(least, greatest))
    changes = changes[changes > -100]
    axis.set_major_locator(FixedLocator(np.log1p(changes / 100).tolist()))
    axis.set_major_formatter(lambda x, _: _in_percent(100 * math.expm1(x)))


def _in_percent(change: float) -> str:
    return "0 %" if abs(change) < 1e-9 else f"{change:+.3g} %".replace("-", "−")


def plain(text: str) -> str:
    """Returns free text as matplotlib takes it: what stands between two $ would be a formula."""
    return text.replace("$", r"\$")


def save(
    figure: Figure,
    out: Path,
    stem: str,
    kinds: tuple[str, ...] = ("svg", "pdf", "png"),
    title: bool = True,
) -> None:
    """Writes the figure in each format. The same records give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        path = out / f"{stem}.{kind}"
        # In memory: on a full disk matplotlib's own writers fail with errors that do not say so.
        write_bytes(path, rendered(figure, kind, title))
        log.info(f"wrote {path}")


def write(out: Path, name: str, text: str) -> Path:
    """Writes a text into a folder, which is made, and says where. Returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / name
    write_text(path, text)
    log.info(f"wrote {path}")
    return path


def rendered(figure: Figure, kind: str, title: bool = True) -> bytes:
    """Returns the figure as a file of this format, if wanted without its title."""
    words = figure.get_suptitle()
    drawn = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        if not title and words:
            figure.suptitle("")
        figure.savefig(drawn, format=kind, metadata=NO_DATES[kind], dpi=DOTS)
    return drawn.getvalue()


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
