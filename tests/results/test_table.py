"""Tables have the committed bytes, and say what is missing.

The golden tables are made from tests/fixtures/records.jsonl. After a wanted change of their form this
writes them again; read the difference before committing it:

    python -m tests.results.test_table
"""

from dataclasses import replace

import pytest

from mirai_bench.results.reading import read_jsonl
from mirai_bench.results.stats import fisher_exact
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import LATEX, WRITERS, latex_escape, markdown
from mirai_bench.utils.errors import UserError
from tests.support.paths import FIXTURES, RECORDS


@pytest.mark.parametrize("kind", WRITERS)
def test_golden_table(frozen, kind):
    assert WRITERS[kind](build_table(frozen)) == (FIXTURES / f"table.{kind}").read_text(encoding="utf-8")


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
    for kind, write in WRITERS.items():
        assert write(build_table(frozen, timing=False)) == write(build_table(slower, timing=False)), kind
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
    lines = WRITERS["csv"](table).splitlines()
    assert all(line.split(",")[-2] == "—" for line in lines if line.startswith("internal-2d,"))
    assert frozen.frame["train_flops"].isna().sum() == 12


def test_latex_has_no_unescaped_special(frozen):
    assert all(latex_escape(c) != c for c in "&%$#_{}~^\\<>±−Δ—")
    text = WRITERS["tex"](build_table(frozen))
    for body, columns in zip(text.split(r"\midrule")[1:], (8, 4), strict=True):
        for line in body.split(r"\bottomrule")[0].strip().splitlines():
            assert line.replace(r"\&", "").count("&") == columns - 1 and line.endswith(r" \\")
    assert not set(text) - set(map(chr, range(128))), "plain ASCII: any LaTeX engine reads it"
    assert "[" not in text.replace("{[}", "")
    assert LATEX["_"] == r"\_"


def test_html_escapes_arm_names(frozen):
    text = WRITERS["html"](build_table(replace(frozen, arms=["<script>alert(1)</script>", *frozen.arms])))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


if __name__ == "__main__":
    for kind, write in WRITERS.items():
        (FIXTURES / f"table.{kind}").write_text(
            write(build_table(read_jsonl([RECORDS])[0])), encoding="utf-8"
        )
