"""Tables as text."""

from mirai_bench.utils.text_table import console_table, fitting, markdown_table


def test_console_columns_are_aligned_and_lines_have_no_trailing_blanks():
    text = console_table(["arm", "state"], [["baseline", "done"], ["a", ""]])
    assert text.splitlines() == ["arm       state", "baseline  done", "a"]


def test_numbers_end_below_each_other():
    text = console_table(["arm", "n", "FD"], [["baseline", "12", "4.1"], ["a", "3", "—"]], right=True)
    assert text.splitlines() == ["arm        n   FD", "baseline  12  4.1", "a          3    —"]


def test_a_wide_table_goes_on_in_parts_that_fit_and_have_the_first_column():
    grid = [["arm", "aaaaa", "bbbbb", "ccccc", "d" * 40], ["x" * 8, "1", "2", "3", "4"]]
    assert fitting(grid, 100) == [[0, 1, 2, 3, 4]]
    assert fitting(grid, 22) == [[0, 1, 2], [0, 3], [0, 4]], "a column that never fits stands alone"
    for columns in fitting(grid, 22)[:2]:
        header, row = ([line[column] for column in columns] for line in grid)
        assert max(map(len, console_table(header, [row]).splitlines())) <= 22


def test_markdown_escapes_what_would_change_the_table():
    text = markdown_table(["arm", "n"], [["odd_name|<b>\\", "3"]])
    assert text.splitlines() == ["| arm | n |", "| --- | ---: |", "| odd\\_name\\|\\<b>\\\\ | 3 |"]


def test_markdown_may_hold_texts_that_are_markdown_already():
    text = markdown_table(["a", "b"], [["`x`", "**1**"]], align="---", escape=False)
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| `x` | **1** |"]
