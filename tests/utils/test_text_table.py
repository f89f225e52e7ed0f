"""Tables as text."""

from mirai_bench.utils.text_table import console_table, markdown_table


def test_console_columns_are_aligned_and_lines_have_no_trailing_blanks():
    text = console_table(["arm", "state"], [["baseline", "done"], ["a", ""]])
    assert text.splitlines() == ["arm       state", "baseline  done", "a"]


def test_markdown_escapes_what_would_change_the_table():
    text = markdown_table(["arm", "n"], [["odd_name|<b>\\", "3"]])
    assert text.splitlines() == ["| arm | n |", "| --- | ---: |", "| odd\\_name\\|\\<b>\\\\ | 3 |"]


def test_markdown_may_hold_texts_that_are_markdown_already():
    text = markdown_table(["a", "b"], [["`x`", "**1**"]], align="---", escape=False)
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| `x` | **1** |"]
