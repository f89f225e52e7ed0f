"""Tables have the committed bytes, and say what is missing.

The golden tables are made from tests/fixtures/records.jsonl. After a wanted change of their form this
writes them again; read the difference before committing it:

    python -m tests.results.test_table
"""

from dataclasses import replace

import pytest

from mirai_bench.results.forms import forms
from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.latex import LATEX, in_latex, latex_escape
from mirai_bench.results.stats import fisher_exact
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import Mark, document, in_markdown, markdown
from mirai_bench.utils.errors import UserError
from tests.support.paths import FIXTURES, RECORDS

KINDS = ("md", "csv", "tex", "html")


@pytest.mark.parametrize("kind", KINDS)
def test_golden_table(frozen, kind):
    found = forms(build_table(frozen), "table")
    assert tuple(found) == KINDS
    assert found[kind] == (FIXTURES / f"table.{kind}").read_text(encoding="utf-8")


def test_rows_keep_the_order_of_the_sweep_and_show_what_is_missing(frozen):
    table = build_table(frozen)
    assert [row.arm for row in table.rows] == frozen.arms
    text = markdown(table)
    assert "| pending | 0 of 3 | — | — | — |" in text and "output-1d seed 2 (failed)" in text
    change = table.rows[2].differences["FD-digits"]
    # ln(4.5 / 5.0), ln(4.8 / 5.4) and ln(4.7 / 5.2), by scipy.stats.ttest_1samp.
    assert change.mean == pytest.approx(-0.10808, abs=1e-5)
    assert change.p == pytest.approx(0.00427572, rel=1e-4), "Holm over two tests"


def test_interrupted_sweep_gives_the_same_table_without_timing(frozen):
    records = [record | {"train_seconds": record["train_seconds"] * 1.7 + 1} for record in frozen.records]
    slower = replace(frozen, records=records)
    tables = [build_table(results, timing=False) for results in (frozen, slower)]
    assert forms(tables[0], "a") == forms(tables[1], "a")
    assert markdown(build_table(frozen)) != markdown(build_table(slower))


def test_runs_that_solved_a_planted_task_are_counted(frozen):
    """3 of 3 against 0 of 3: of the 20 ways to choose 3 of 6 runs two are as extreme, so p is 0.1."""
    records = []
    for record in frozen.records:
        solved = float(record["arm"] == "output-1d")
        records.append(record | {"metrics": record["metrics"] | {"solved": solved}})
    (note,) = [text for text in build_table(replace(frozen, records=records)).notes if "solved" in text]
    n = len(frozen.by_seed("output-1d", build_step(frozen), "FD-digits"))
    assert f"baseline 0 of 3, output-1d {n} of {n} (p " in note and "Fisher" in note
    assert fisher_exact(3, 3, 0, 3) == pytest.approx(0.1) and fisher_exact(5, 5, 0, 5) == pytest.approx(
        2 / 252
    )


def test_what_was_set_on_the_command_line_is_said(frozen):
    varied = replace(frozen, settings=["train.epochs=2"])
    assert "Not as the sweep file has it: train.epochs=2 (--set)." in build_table(varied).notes
    assert not [note for note in build_table(frozen).notes if "--set" in note]


def build_step(results):
    return max(record["step"] for record in results.records)


def test_earlier_epoch_and_other_metric(frozen):
    table = build_table(frozen, metric="precision", epoch=4)
    assert table.metrics[0] == "precision"
    assert table.rows[0].values["FD-digits"].mean == pytest.approx(7.2)
    with pytest.raises(UserError, match="no evaluation at epoch 5: there are 2, 4, 8, 12"):
        build_table(frozen, epoch=5)
    with pytest.raises(UserError, match="no evaluation yet"):
        build_table(replace(frozen, records=[]))


def test_papers_value_is_of_the_same_size_and_nearest_epoch(frozen):
    run = frozen.records[0]["run"]
    run |= {"config": {"model": {"size": "XL"}}}
    records = [record | {"run": run} for record in frozen.records]
    large = build_table(replace(frozen, profile="imagenet256_xl", records=records))
    value = large.rows[0].paper["FD-digits"]
    assert (value.value, value.epochs) == (4.40, 20)
    digits = build_table(read_jsonl([RECORDS])[0])
    value = digits.rows[0].paper["FD-digits"]
    assert (value.value, value.epochs) == (6.36, 80)


def test_a_cost_that_is_not_known_is_shown_as_missing(frozen):
    """The cost of a run is None if it uses an encoder of unknown size."""
    for record in frozen.records:
        if record["arm"] == "internal-2d":
            record["train_flops"] = None
    table = build_table(frozen)
    row = table.rows[frozen.arms.index("internal-2d")]
    assert row.flops is None
    assert row.seconds is not None
    (line,) = [line for line in markdown(table).splitlines() if line.startswith("| internal-2d | 3 | 4.67")]
    assert line.endswith("| — | 1.50 |")
    lines = forms(table, "a")["csv"].splitlines()
    assert all(line.split(",")[-2] == "—" for line in lines if line.startswith("internal-2d,"))
    assert frozen.frame["train_flops"].isna().sum() == 12


def test_latex_has_no_unescaped_special(frozen):
    assert all(latex_escape(c) != c for c in "&%$#_{}~^\\<>±−Δ—≥≤")
    text = forms(build_table(frozen), "a")["tex"]
    for body, columns in zip(text.split(r"\midrule")[1:], (8, 4), strict=True):
        for line in body.split(r"\bottomrule")[0].strip().splitlines():
            assert line.replace(r"\&", "").count("&") == columns - 1 and line.endswith(r" \\")
    assert not set(text) - set(map(chr, range(128))), "plain ASCII: any LaTeX engine reads it"
    assert LATEX["_"] == r"\_"


# ---- columns, and what is marked


def test_chosen_columns_stand_in_their_order(frozen):
    table = build_table(frozen)
    (grid,) = document(table, ["recall", "n", "p", "FD-digits", "change"]).grids
    assert grid[0] == ["arm", "recall ↑", "n", "p (Holm)", "FD-digits ↓", "Δ to baseline"]
    whole = document(table).grids
    assert [line[2] for line in grid] == [line[1] for line in whole[0]]
    found = forms(table, "a", ["n", "recall"])
    assert all("KID" not in found[kind].split("Mean")[0] for kind in ("md", "tex", "html"))
    assert found["csv"] == forms(table, "a")["csv"]


@pytest.mark.parametrize("name", ["recalls", "verdict", "arm", "floor"])
def test_a_column_that_the_table_does_not_have_is_refused(frozen, name):
    with pytest.raises(UserError, match=f"Unknown column '{name}'"):
        document(build_table(frozen), ["n", name])


def marked(table, column):
    """Returns the marks of a column by arm."""
    texts = document(table, [column])
    return {texts.grids[0][row][0]: mark for (_, row, _), mark in texts.marks.items()}


def test_the_best_mean_and_what_is_shown_are_marked(frozen):
    table = build_table(frozen)
    means = {row.arm: row.values["FD-digits"].mean for row in table.rows if row.values["FD-digits"]}
    best = min(means, key=means.get)
    shown = {
        row.arm
        for row in table.rows
        if row.differences and (change := row.differences["FD-digits"]) and change.p < 0.05
    }
    assert best == "internal-2d" and shown
    wanted = {arm: Mark(arm == best, arm in shown) for arm in {best} | shown}
    assert marked(table, "FD-digits") == wanted
    assert marked(table, "change") == {arm: Mark(False, True) for arm in shown}
    assert marked(table, "n") == {}
    recalls = {row.arm: row.values["recall"].mean for row in table.rows if row.values["recall"]}
    assert {arm for arm, mark in marked(table, "recall").items() if mark.best} == {
        arm for arm, mean in recalls.items() if mean == max(recalls.values())
    }


def test_verdicts_decide_what_is_marked_where_looks_are_planned(frozen):
    table = build_table(frozen)
    verdicts = {"internal-2d": "undecided", "output-1d": "worse (look 1)", "baseline": None}
    rows = [replace(row, verdict=verdicts.get(row.arm, "pilot")) for row in table.rows]
    changed = replace(table, rows=rows)
    assert {arm for arm, mark in marked(changed, "FD-digits").items() if mark.significant} == {"output-1d"}
    taught = [replace(row, verdict="teacher" if row.arm == "internal-2d" else None) for row in table.rows]
    best = {arm for arm, mark in marked(replace(table, rows=taught), "FD-digits").items() if mark.best}
    assert best and "internal-2d" not in best, "its own teacher is the judge"


# ---- LaTeX


def floats_of(text):
    return [part for part in text.split(r"\begin{table")[1:]]


def test_each_tabular_is_a_float_with_a_label_and_the_notes_stand_once(frozen):
    table = build_table(frozen)
    for width, environment in (("page", "table*"), ("column", "table")):
        text = in_latex(document(table), "my_table", width)
        assert text.count(rf"\begin{{{environment}}}") == text.count(r"\begin{tabular}")
        labels = [line for line in text.splitlines() if line.startswith(r"\label")]
        assert labels[:2] == [r"\label{tab:my_table}", r"\label{tab:my_table-2}"]
        captions = [line for line in text.splitlines() if line.startswith(r"\caption")]
        assert all(len(line) < 150 for line in captions), "notes are no part of it"
        first, *others = floats_of(text)
        assert "Mean $\\pm$ half width" in first and all("half width" not in part for part in others)


def test_a_wide_table_is_continued_in_more_floats_each_with_the_arms(frozen):
    table = build_table(frozen)
    wide, narrow = (in_latex(document(table), "a", width) for width in ("page", "column"))
    assert len(floats_of(wide)) == 2
    assert len(floats_of(narrow)) > 2
    for part in floats_of(narrow):
        assert all(f"\n{arm} & " in part for arm in ("baseline", "internal-2d"))
    cells = [sum(line.count(" & ") for line in text.splitlines()) for text in (wide, narrow)]
    assert cells[0] == cells[1], "no column is lost"


def test_best_and_significant_cells_are_marked_in_latex_only(frozen):
    table = build_table(frozen)
    text = forms(table, "a")["tex"]
    (line,) = [line for line in text.splitlines() if line.startswith("internal-2d & 3 & ")]
    assert r"\textbf{4.67 $\pm$ 0.38}$^{*}$" in line
    assert "Bold: the best mean." in text
    assert "*" not in in_markdown(document(table)).replace("**", "")


def test_html_escapes_arm_names(frozen):
    evil = build_table(replace(frozen, arms=["<script>alert(1)</script>", *frozen.arms]))
    text = forms(evil, "a")["html"]
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


if __name__ == "__main__":
    for kind, text in forms(build_table(read_jsonl([RECORDS])[0]), "table").items():
        (FIXTURES / f"table.{kind}").write_text(text, encoding="utf-8")
