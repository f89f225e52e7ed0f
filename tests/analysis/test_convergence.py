"""The figure of curves: what it draws, which numbers stand at its axes, and what an SVG calls its parts."""

import re
from dataclasses import replace

import common
import convergence
import fid_table
import numpy as np
import plot_convergence
import pytest
import ticks
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from mirai_bench.results.stats import paired
from mirai_bench.utils.errors import UserError
from tests.support.paths import RECORDS


def with_arms(frozen, names):
    """Returns the results with the baseline's records under other names, too."""
    arms = ["baseline", *names]
    records = [r | {"arm": arm} for r in frozen.records if r["arm"] == "baseline" for arm in arms]
    cells = [c | {"arm": arm} for c in frozen.cells if c["arm"] == "baseline" for arm in arms]
    return replace(frozen, arms=arms, records=records, cells=cells)


@pytest.fixture
def many(frozen):
    return with_arms(frozen, [f"arm-{i}" for i in range(7)])


def drawn_lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_linestyle() == "-"]


# ---- panels


def test_many_arms_have_a_panel_each_beside_the_baseline(frozen, many):
    figure = convergence.draw(many, "FD-digits", "epochs", "minmax", "log")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == many.arms[1:]
    looks = common.look(many)
    mean = frozen.frame[frozen.frame.arm == "baseline"].groupby("epoch")["FD-digits"].mean()
    for arm, axes in zip(many.arms[1:], panels, strict=True):
        lines = drawn_lines(axes)
        assert all(np.allclose(line.get_ydata(), mean.values) for line in lines)
        assert {line.get_color() for line in lines} == {looks["baseline"][0], looks[arm][0]}


def numbered(figure):
    """Returns the axes that have numbers of x, as (row, column)."""
    places = [axes.get_subplotspec() for axes in figure.axes]
    shown = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes]
    return [(p.rowspan.start, p.colspan.start) for p, is_shown in zip(places, shown, strict=True) if is_shown]


def test_the_lowest_panel_of_each_column_has_the_numbers(many):
    # Seven panels of four columns: the place below the fourth is empty.
    figure = convergence.draw(many, "FD-digits", "epochs", width=9)
    assert sorted(numbered(figure)) == [(1, 3), (3, 0), (3, 1), (3, 2)]


@pytest.mark.parametrize(("width", "columns"), [(9, 4), (6.5, 3), (3.3, 1), (20, 4)])
def test_a_narrow_figure_has_fewer_columns(many, width, columns):
    figure = convergence.draw(many, "FD-digits", "epochs", width=width)
    assert figure.get_figwidth() == width
    assert max(axes.get_subplotspec().colspan.start for axes in figure.axes) == columns - 1


def test_a_panel_says_if_seeds_are_missing(many):
    *others, last = many.arms
    planned = len(many.seeds(last))
    missing = (last, many.seeds(last)[0])
    lost = [record for record in many.records if (record["arm"], record["seed"]) != missing]
    figure = convergence.draw(replace(many, records=lost), "FD-digits", "epochs")
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    assert titles == [*others[1:], f"{last} ({planned - 1} of {planned} seeds)"]


# ---- seeds and bands


def test_more_than_three_arms_in_a_panel_have_thin_lines_and_no_bands(frozen):
    few = with_arms(frozen, ["a", "b"])
    for results, has_bands in ((frozen, False), (few, True)):
        axes = convergence.draw(results, "FD-digits", "epochs").axes[0]
        bands = [each for each in axes.collections if isinstance(each, PolyCollection)]
        assert bool(bands) is has_bands
        widths = {line.get_linewidth() for line in drawn_lines(axes)}
        assert widths == ({1.5} if has_bands else {0.6, 2.0})
    thin = [line for line in convergence.draw(frozen, "FD-digits", "epochs").axes[0].lines]
    thin = [line for line in thin if line.get_linewidth() == 0.6]
    assert len(thin) == len({(r["arm"], r["seed"]) for r in frozen.records})


# ---- the changes below the curves


def test_changes_below_the_curves_are_paired_by_seed(frozen):
    figure = convergence.draw(frozen, "FD-digits", "epochs")
    curves, changes = figure.axes
    assert curves.get_subplotspec().rowspan.start < changes.get_subplotspec().rowspan.start
    colour, _ = common.look(frozen)["internal-2d"]
    (bars,) = [each for each in changes.containers if each.lines[0].get_color() == colour]
    steps = sorted({(r["step"], r["epoch"]) for r in frozen.records if r["arm"] == "internal-2d"})
    wanted = []
    for step, _ in steps:
        values = [frozen.by_seed(arm, step, "FD-digits") for arm in ("internal-2d", "baseline")]
        wanted.append(paired(*values, in_log=True))
    assert bars.lines[0].get_ydata() == pytest.approx([each.mean for each in wanted])
    assert bars.lines[0].get_xdata() == pytest.approx([epoch for _, epoch in steps], abs=0.3)
    low = [segment[0][1] for segment in bars.lines[2][0].get_segments()]
    assert low == pytest.approx([each.low for each in wanted])
    labels = [text.get_text() for text in changes.get_yticklabels()]
    assert "0 %" in labels


def test_there_are_no_changes_without_a_baseline_or_another_arm(frozen):
    for kept in (["internal-2d", "output-1d"], ["baseline"]):
        records = [record for record in frozen.records if record["arm"] in kept]
        results = replace(frozen, arms=kept, records=records)
        assert len(convergence.draw(results, "FD-digits", "epochs").axes) == 1


# ---- axes


def test_a_share_has_a_linear_scale_however_wide_it_is(frozen):
    for record in frozen.records:
        record["metrics"]["class_accuracy"] = 0.01 * record["epoch"]
        record["metrics"]["KID-digits"] = 0.01 * record["epoch"]
    for metric, scale in (("class_accuracy", "linear"), ("KID-digits", "log")):
        assert convergence.draw(frozen, metric, "epochs").axes[0].get_yscale() == scale


@pytest.mark.parametrize("limits", [(2.2, 17), (8.6, 13.2), (0.3, 900), (3.1, 3.4)])
def test_a_logarithmic_axis_has_numbers_whatever_it_spans(frozen, limits):
    axes = Figure().subplots()
    axes.plot([0, 1], limits)
    frame = convergence.tidy(frozen, "FD-digits", "epochs")
    ticks.metric_axis(axes, "FD-digits", "log", frame["y"])
    low, high = axes.get_ylim()
    places = [place for place in axes.get_yticks() if low <= place <= high]
    labels = [axes.yaxis.get_major_formatter()(place) for place in places]
    assert len(labels) >= ticks.FEWEST
    assert len(set(labels)) == len(labels)


def test_large_costs_are_multiples_of_one_power_that_is_named_once(many):
    figure = convergence.draw(many, "FD-digits", "flops")
    greatest = max(record["train_flops"] for record in many.records)
    power = int(np.floor(np.log10(greatest)))
    assert figure.get_supxlabel() == f"training FLOPs ($10^{{{power}}}$)"
    formatter = figure.axes[0].xaxis.get_major_formatter()
    assert formatter(2.5 * 10**power) == "2.5"
    assert not any(axes.xaxis.get_offset_text().get_text() for axes in figure.axes)


def test_neighbouring_arms_have_other_markers_and_no_two_look_the_same():
    looks = [common.nth_look(i) for i in range(84)]
    assert len(set(looks)) == 84
    assert len({marker for _, marker in looks[:5]}) == 5
    assert "o" not in {marker for _, marker in looks}, "the baseline's"


# ---- for papers, and for pages


@pytest.mark.parametrize(("width", "inches"), [("column", 3.3), ("page", 6.9), ("5", 5.0)])
def test_a_figure_for_a_paper_has_its_width_and_no_title(width, inches, tmp_path):
    words = ["--records", str(RECORDS), "--out", str(tmp_path), "--width", width, "--no-title"]
    assert plot_convergence.command(words) == 0
    assert fid_table.command(words) == 0
    for stem in ("injection_level", "injection_level_differences"):
        text = (tmp_path / f"{stem}.svg").read_text()
        assert f'width="{inches * 72:g}pt"' in text, stem
        assert "is it better_at the output" not in text, "matplotlib writes its texts as comments"
    # The table beside the figure fits the same place.
    is_narrow = r"\begin{table}" in (tmp_path / "injection_level.tex").read_text()
    assert is_narrow is (width == "column")


@pytest.mark.parametrize("width", ["0", "-3", "nan", "wide", "1000"])
def test_a_width_that_is_none_is_refused(width, tmp_path):
    with pytest.raises(UserError, match="write column or page, or inches from"):
        plot_convergence.command(["--records", str(RECORDS), "--out", str(tmp_path), f"--width={width}"])


def test_an_svg_names_the_parts_of_each_arm_once(frozen, many):
    for results in (frozen, many):
        figure = convergence.draw(results, "FD-digits", "epochs")
        text = common.rendered(figure, "svg").decode()
        names = re.findall(r'id="(arm-[^"]*)"', text)
        assert len(names) == len(set(names))
        shown = {int(name.split("-")[1]) for name in names}
        drawn = {results.arms.index(record["arm"]) for record in results.records}
        assert shown == drawn
