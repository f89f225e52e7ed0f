"""The arms at classifier-free guidance: at scale 1, and each at the scale that suits it best.

    python analysis/guidance.py --runs runs --axis injection_level

An arm's best scale is chosen among 1, 1.25, 1.5 and 2 on 1,000 samples of each of its runs that no result
uses. What is measured is in data/guidance_PROFILE.jsonl, and is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from again import (
    Again,
    FinalWeights,
    Key,
    Line,
    add_sources,
    finished,
    folder_of,
    last_record,
    lines_of,
    made_by,
    named,
)
from common import STYLE, draw_change, looks_of, percent_axis, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mirai_bench.results.frame import Results, file_stem, is_distance, lower_is_better
from mirai_bench.results.stats import Estimate, paired, t_interval
from mirai_bench.results.writers import difference, number
from mirai_bench.utils.cli import progress, run
from mirai_bench.utils.files import write_text
from mirai_bench.utils.text_table import markdown_table

SCALES = (1.0, 1.25, 1.5, 2.0)
TRIED_ON = 1_000  # samples of each scale, when an arm's scale is chosen
NAME = "guidance"  # of the files
HAS = "tried"  # a field of their lines


# ---- what is measured


def measure(results: Results, known: dict[Key, Line]) -> Iterator[Line]:
    """Yields a line for each finished cell of a sweep, and later those that need another scale.

    `known` are the lines of an earlier call.
    """
    # 1. All scales, on samples that no result uses.
    cells = finished(results)
    evaluate = Again()
    lines = []
    for cell in progress(cells, f"{results.axis}: choosing scales", len(cells), "runs"):
        line = known.get((results.axis, cell["arm"], cell["fingerprint"]))
        if line is None:
            final = FinalWeights.of(folder_of(results, cell))
            last = last_record(results, cell)
            scale = final.config.evaluation.protocol.cfg_scale
            tried = {str(s): evaluate(final, True, cfg_scale=s, num_samples=TRIED_ON).metrics for s in SCALES}
            # The run's own evaluation is that of its protocol's scale.
            line = made_by(last) | {HAS: tried, "at": {str(scale): last["metrics"]}}
        lines.append(line | named(results, cell))
        yield lines[-1]
    # 2. Scale 1 and the arm's best, on the samples of the protocol.
    for line, cell in zip(lines, cells, strict=True):
        missing = [s for s in {1.0, best_scale(lines, line["arm"])} if str(s) not in line["at"]]
        if missing:
            final = FinalWeights.of(folder_of(results, cell))
            line["at"] |= {str(s): evaluate(final, cfg_scale=s).metrics for s in missing}
            yield line


def best_scale(lines: Sequence[Line], arm: str) -> float:
    """Returns the scale at which an arm does best on the samples that scales are tried on.

    Its runs have one vote together: the mean over the seeds decides, of a distance the geometric mean.
    """
    sign = 1 if lower_is_better(lines[0]["metric"]) else -1
    return min(SCALES, key=lambda scale: sign * typical(tried_values(lines, arm, scale), lines[0]["metric"]))


def tried_values(lines: Sequence[Line], arm: str, scale: float) -> list[float]:
    """Returns the values of an arm's runs at a scale that was tried."""
    return [line[HAS][str(scale)][line["metric"]] for line in lines if line["arm"] == arm]


def typical(values: Sequence[float], metric: str) -> float:
    """Returns the mean of values, of a distance the geometric one."""
    return float(np.exp(np.log(values).mean()) if is_distance(metric) else np.mean(values))


# ---- what comes out


class Row(NamedTuple):
    """An arm without guidance and at its best scale."""

    arm: str
    n: int
    best: float
    plain: Estimate
    guided: Estimate
    plain_change: Estimate | None
    """The difference to the baseline of the same seeds, of a distance in the logarithm."""
    guided_change: Estimate | None
    """That to the baseline at the baseline's own best scale."""


def rows(lines: Sequence[Line]) -> list[Row]:
    """Returns a row for each arm of a sweep, the baseline first."""
    baseline, metric = lines[0]["baseline"], lines[0]["metric"]
    arms = list(dict.fromkeys(line["arm"] for line in lines))
    arms.sort(key=lambda arm: arm != baseline)
    best = {arm: best_scale(lines, arm) for arm in arms}
    plain = {arm: by_seed(lines, arm, 1.0) for arm in arms}
    guided = {arm: by_seed(lines, arm, best[arm]) for arm in arms}
    found = []
    for arm in arms:
        own = [t_interval(values[arm].values()) for values in (plain, guided)]
        assert own[0] is not None and own[1] is not None, "an arm has a run"
        changes: list[Estimate | None] = [None, None]
        if arm != baseline and baseline in best:
            log = is_distance(metric)
            changes = [paired(values[arm], values[baseline], in_log=log) for values in (plain, guided)]
        found.append(Row(arm, len(plain[arm]), best[arm], own[0], own[1], changes[0], changes[1]))
    return found


def by_seed(lines: Sequence[Line], arm: str, scale: float) -> dict[int, float]:
    """Returns the values of an arm's runs at a scale, on the protocol's samples, by seed."""
    own = [line for line in lines if line["arm"] == arm]
    return {line["seed"]: line["at"][str(scale)][line["metric"]] for line in own}


def table(lines: Sequence[Line]) -> str:
    """Returns the table of one sweep."""
    metric = lines[0]["metric"]
    cells = []
    for row in rows(lines):
        values = [
            f"{number(value.mean, metric)} ± {number(value.half, metric)}"
            for value in (row.plain, row.guided)
        ]
        changes = [difference(change, metric) for change in (row.plain_change, row.guided_change)]
        cells.append([row.arm, str(row.n), values[0], changes[0], f"{row.best:g}", values[1], changes[1]])
    header = ["arm", "n", f"{metric} at CFG 1", "change", "best CFG", f"{metric} there", "change"]
    return markdown_table(header, cells)


def report(lines: Sequence[Line]) -> str:
    """Returns the tables of all sweeps of a profile, with what their columns mean."""
    parts = [f"# Classifier-free guidance on {lines[0]['profile']}\n"]
    for axis, own in by_axis(lines).items():
        parts.append(f"## {axis}\n\n{table(own)}")
    device = ", ".join(sorted({line["device"] for line in lines}))
    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    parts.append(
        f"Mean ± half of the 95 % interval over the n seeds, on {device}. Change: the difference to the "
        "baseline of the same seeds with its 95 % interval, of a Fréchet distance as a change of the ratio; "
        "on the right both arms are at their own best scale. It describes and decides nothing: there is no "
        f"correction for the number of arms. Best CFG: the scale among {scales} with the best mean over the "
        f"seeds, on {TRIED_ON:,} samples of each run that are used for nothing else; an end of this range "
        "may not be the arm's optimum.\n"
    )
    return "\n".join(parts)


def by_axis(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Returns the lines of each sweep."""
    axes = sorted({line["axis"] for line in lines})
    return {axis: [line for line in lines if line["axis"] == axis] for axis in axes}


# ---- the figure


def draw(lines: Sequence[Line]) -> Figure:
    """Returns a figure of one sweep: the metric against the scale, and what the arms change."""
    found = rows(lines)
    metric = lines[0]["metric"]
    looks = looks_of([row.arm for row in found], lines[0]["baseline"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, max(3.2, 1.2 + 0.3 * len(found))), layout="constrained")
        curves, changes = figure.subplots(1, 2)
        for row in found:
            colour, marker = looks[row.arm]
            values = [typical(tried_values(lines, row.arm, scale), metric) for scale in SCALES]
            curves.plot(SCALES, values, color=colour, marker=marker, label=row.arm)
            curves.plot(row.best, values[SCALES.index(row.best)], "o", mfc="none", mec=colour, markersize=11)
        curves.set_xticks(SCALES, [f"{scale:g}" for scale in SCALES])
        curves.set_xlabel("scale of classifier-free guidance")
        curves.set_ylabel(f"{metric}, {TRIED_ON:,} samples")
        curves.set_title("to choose the scale (circled: the best)", fontsize=9, loc="left")
        curves.legend(fontsize=7.5)
        draw_changes(changes, [row for row in found if row.plain_change is not None], lines)
    return figure


def draw_changes(axes: Axes, arms: Sequence[Row], lines: Sequence[Line]) -> None:
    """Draws what each arm changes at CFG 1 (filled) and at its best scale (open)."""
    metric = lines[0]["metric"]
    looks = looks_of([row.arm for row in arms], lines[0]["baseline"])
    axes.axvline(0, color="black", linewidth=1)
    for place, row in enumerate(arms):
        for shift, change in ((-0.15, row.plain_change), (0.15, row.guided_change)):
            if change is not None:
                draw_change(axes, place + shift, change, *looks[row.arm], filled=shift < 0)
    axes.set_yticks(range(len(arms)), [row.arm for row in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)  # the first arm on top, as in the table
    if is_distance(metric):
        percent_axis(axes)
    axes.set_xlabel(f"{metric}: change relative to the baseline", fontsize=9)
    axes.set_title("filled: CFG 1; open: each at its best scale", fontsize=9, loc="left")


# ---- command line


def command(argv: list[str]) -> None:
    """Measures what is missing, and writes the table and a figure of each sweep."""
    parser = argparse.ArgumentParser(prog="python analysis/guidance.py", description=__doc__.splitlines()[0])
    add_sources(parser, NAME)
    args = parser.parse_args(argv)
    lines = lines_of(args, NAME, HAS, measure)
    text = report(lines)
    profile = lines[0]["profile"]
    path = args.out / file_stem(f"{NAME}_{profile}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    for axis, own in by_axis(lines).items():
        save(draw(own), args.out, file_stem(f"{NAME}_{axis}_{profile}"))
    print(text)


if __name__ == "__main__":
    sys.exit(run(command))
