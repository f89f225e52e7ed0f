"""The LaTeX tables compile with pdflatex: the committed ones, and one with all that needs escaping.

Takes about 5 seconds. Needs Debian's package texlive-latex-recommended. With poppler-utils
(pdftotext), the text of the page is read, too.
"""

import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace

import pytest

from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.latex import LATEX, WIDTHS, in_latex
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import document
from tests.nightly.environments import END_OF_OUTPUT
from tests.support.paths import RECORDS, ROOT

PDFLATEX = shutil.which("pdflatex")

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(PDFLATEX is None, reason="needs pdflatex (texlive-latex-recommended)"),
]

# What pdftotext reads if it is not the character itself: LaTeX draws an underscore as a line, and
# an ellipsis as three dots.
READ_AS = {"_": " ", "~": "˜", "^": "ˆ", "Δ": "∆", "…": ". . ."}
TABLES = sorted((ROOT / "reports").glob("*.tex"))
# What the tables say that they need, and pages as they are by default.
DOCUMENT = r"""\documentclass%s{article}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""
CLASSES = {"one column": "", "two columns": "[twocolumn]"}


def compiled(tex: str, folder, name: str, options: str = ""):
    """Compiles a document around this text. Returns the path of its PDF and the log of pdflatex."""
    (folder / f"{name}.tex").write_text(DOCUMENT % (options, tex), encoding="utf-8")
    words = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
    done = subprocess.run([*words, f"{name}.tex"], cwd=folder, capture_output=True, timeout=120)
    log = done.stdout.decode("utf-8", errors="replace")
    assert done.returncode == 0, log[-END_OF_OUTPUT:]
    assert "Missing character" not in log, log[-END_OF_OUTPUT:]
    return folder / f"{name}.pdf", log


def text_of(pdf) -> str:
    """Returns the text of a PDF as it stands on the page. Skips the test if there is no pdftotext."""
    if shutil.which("pdftotext") is None:
        pytest.skip("compiles, but its text cannot be read: needs pdftotext (poppler-utils)")
    words = ["pdftotext", "-layout", pdf, "-"]
    text = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    return unicodedata.normalize("NFC", text)  # a letter and its accent are two characters in the file


def rows_of(tex: str) -> list[list[str]]:
    """Returns the cells of the table's first tabular, header first, as they stand in the source."""
    first = tex.split(r"\end{tabular}")[0]
    lines = [line for line in first.splitlines() if line.endswith(r"\\")]
    return [line.removesuffix(r" \\").split(" & ") for line in lines]


def refuse_overfull(log: str) -> None:
    assert re.findall(r"Overfull \\hbox.*", log) == []
    assert "Float too large" not in log


@pytest.mark.parametrize("options", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_committed_table_compiles_and_fits(path, options, tmp_path, figures):
    tex = path.read_text(encoding="utf-8")
    pdf, log = compiled(tex, tmp_path, path.stem, options)
    refuse_overfull(log)
    figures(f"{path.name}: {pdf.stat().st_size:,} bytes, {log.count('[')} pages or less")
    lines = text_of(pdf).splitlines()
    for row in rows_of(tex)[1:]:
        arm, seeds = (cell.replace(r"\_", READ_AS["_"]) for cell in row[:2])
        assert any(re.match(rf"\s*{re.escape(arm)}\s+{seeds}\s", line) for line in lines), arm


@pytest.mark.parametrize("columns", [[], ["n", "change", "verdict"], ["n", "FD-digits", "recall"]])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_for_a_column_or_a_page_fits_and_can_be_referred_to(width, columns, tmp_path):
    table = build_table(read_jsonl([ROOT / "reports" / "data" / "injection_level_digits.jsonl"])[0])
    tex = in_latex(document(table, columns), "levels", width)
    for name, options in CLASSES.items():
        # Twice, so that the number of the table is known.
        for _ in range(2):
            pdf, log = compiled(tex + r"See table~\ref{tab:levels}.", tmp_path, "levels", options)
        refuse_overfull(log)
        text = " ".join(text_of(pdf).split())
        assert "See table 1." in text, name
        assert "internal-2d" in text and "Bold: the best mean." in text


def test_there_is_a_committed_table_for_every_sweep():
    tables = (ROOT / "reports").glob("*.html")
    assert {path.stem for path in TABLES} == {path.stem for path in tables}


def test_names_with_every_character_that_needs_escaping_compile(tmp_path):
    """The arm, the title and a note of a built table hold all of them, each also doubled."""
    awkward = "".join(LATEX) + "".join(2 * character for character in LATEX) + "a_b%c"
    table = build_table(read_jsonl([RECORDS])[0])
    first = replace(table.rows[0], arm=awkward)
    notes = [*table.notes, awkward]
    title = f"{awkward} {table.title}"
    changed = replace(table, title=title, rows=[first, *table.rows[1:]], notes=notes)
    pdf, _ = compiled(in_latex(document(changed), "awkward"), tmp_path, "awkward")
    text = text_of(pdf)
    for character in LATEX:
        on_page = READ_AS.get(character, character)
        assert on_page in text, f"{character} is not on the page"
    assert f"a{READ_AS['_']}b%c" in text
