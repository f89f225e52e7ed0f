"""The page of a report holds what the other scripts write, needs no other file, and escapes all names."""

import html
import re
from dataclasses import replace

import common
import pytest
import report
import report_parts
from report_page import Part, Sweep, image, inline_svg, page

from mirai_bench.results.frame import Results
from mirai_bench.results.frozen import freeze
from mirai_bench.results.looks import BETTER, PILOT
from mirai_bench.results.table import build_table
from mirai_bench.results.teachers import TEACHER
from mirai_bench.results.writers import document
from mirai_bench.utils.errors import UserError
from tests.support.diagnosed import diagnosis_line, write_diagnoses
from tests.support.paths import RECORDS, ROOT
from tests.support.synthetic import PNG, injection_level, write_plan, write_run

TITLES = [
    *("What came out", "Table", "Convergence", "Paired differences", "Speed-up", "The paper's claims"),
    *("Cost", "Protocol", "Provenance", "How to repeat it"),
]
EVIL = "<script>alert('x')</script>"


def written(words, out):
    """Returns the only page that the command writes."""
    assert report.command([*words, "--out", str(out)]) == 0
    (path,) = out.glob("*.html")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The page of the committed records of the tests."""
    return written(["--records", str(RECORDS)], tmp_path_factory.mktemp("report"))


def titles_of(text):
    return [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", text)]


# ---- what it holds


def test_it_has_every_part_for_which_there_is_something(built):
    assert titles_of(built) == TITLES
    linked = re.findall(r'<a href="#([^"]*)"', built)
    assert linked and all(f'id="{name}"' in built for name in linked)


def test_its_tables_are_those_of_the_other_scripts(built, frozen):
    cells = [html.unescape(cell) for cell in re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", built)]
    grids = document(build_table(frozen)).grids
    wanted = [cell for grid in grids for row in grid for cell in row]
    assert cells[: len(wanted)] == wanted
    assert "baseline, against itself" in cells
    assert all(note in html.unescape(built) for note in build_table(frozen).notes)


def test_it_says_where_the_numbers_come_from_and_how_to_repeat_them(built, frozen):
    run = frozen.records[0]["run"]
    for said in (run["git"]["commit"], run["device"], run["protocol_digest"], "records.jsonl", "sha256:"):
        assert said in built
    assert f"{len(frozen.records)} evaluations" in built
    assert "python -m mirai_bench.sweep sweeps/injection_level.yaml --profile digits --seeds 0 1 2" in built
    assert f"python analysis/report.py --records {RECORDS}" in built


def test_the_same_records_give_the_same_bytes(built, tmp_path):
    assert written(["--records", str(RECORDS)], tmp_path) == built


def test_it_needs_no_other_file_and_no_network(built):
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', built)
    assert "@import" not in built and "url(http" not in built
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', built).group(1)
    assert policy.startswith("default-src 'none'")
    assert built.count("<script>") == 1


# ---- verdicts in words


@pytest.mark.parametrize(
    ("verdict", "word", "said"),
    [
        ("better (look 1)", BETTER, "is better than baseline, decided at look 1"),
        (PILOT, PILOT, "has a pilot only, which decides nothing"),
        (TEACHER, TEACHER, "gets no verdict from FD-digits, because its own teacher would be the judge"),
    ],
)
def test_a_verdict_is_a_sentence(frozen, verdict, word, said):
    table = build_table(frozen)
    row = next(row for row in table.rows if row.arm == "internal-2d")
    assert report_parts.said_of(table, replace(row, verdict=verdict)) == (word, said)


def test_without_planned_looks_a_sentence_has_the_p_value(frozen):
    part = report_parts.verdicts(frozen, build_table(frozen))
    sentences = {verdict.arm.name: (verdict.said, verdict.measured) for verdict in part.verdicts}
    said, measured = sentences["internal-2d"]
    assert re.fullmatch(r"differs significantly from baseline \(Holm-corrected p \S+\)", said)
    assert measured.startswith("FD-digits −") and measured.endswith("3 seeds")
    assert sentences["pending"] == ("is not tested", "no seed of it can be compared")


# ---- names that mean something in HTML


def test_names_from_records_are_escaped(frozen, tmp_path):
    records = [r | {"arm": EVIL if r["arm"] == "output-1d" else r["arm"]} for r in frozen.records]
    cells = [c | {"arm": EVIL if c["arm"] == "output-1d" else c["arm"]} for c in frozen.cells]
    arms = [EVIL if arm == "output-1d" else arm for arm in frozen.arms]
    evil = replace(frozen, arms=arms, records=records, cells=cells, question=f"Is it {EVIL}?")
    freeze(evil, tmp_path / "evil.jsonl")
    text = written(["--records", str(tmp_path / "evil.jsonl")], tmp_path / "out")
    assert EVIL not in text
    assert text.count("<script>") == 1, "its own"
    assert html.escape(EVIL, quote=False).replace("'", "&#39;") in text


def test_a_figure_in_the_page_has_no_comment_and_ids_of_its_own(frozen):
    from convergence import draw

    text = inline_svg(draw(replace(frozen, question="-->" + EVIL), "FD-digits", "epochs"), "one", EVIL)
    assert "<!--" not in text and EVIL not in text and " width=" not in text.split(">")[0]
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert ids and all(name.startswith("one-") for name in ids)
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
    assert used and {name for pair in used for name in pair if name} <= set(ids)
    assert {f"arm-{number}" for number in range(4)} == set(re.findall(r'class="(arm-\d+)"', text))


# ---- what lies beside the records


def test_diagnoses_and_samples_beside_the_records_are_found(frozen, tmp_path):
    data = tmp_path / "reports" / "data"
    freeze(frozen, data / "mine.jsonl")
    (tmp_path / "reports" / "injection_level_samples.png").write_bytes(PNG)
    for name in ("diagnose_injection_level_digits.jsonl", "injection_level_digits.jsonl"):
        (data / name).write_bytes((ROOT / "reports" / "data" / name).read_bytes())
    words = ["--records", str(data / "mine.jsonl")]
    assert "Samples" in titles_of(written(words, tmp_path / "mine"))
    beside = report.with_diagnoses(parsed(["--records", str(data / "injection_level_digits.jsonl")]))
    assert [path.name for path in beside.records] == [
        "injection_level_digits.jsonl",
        "diagnose_injection_level_digits.jsonl",
    ]


def parsed(words):
    return common.parser("report", "", "").parse_args(words)


def test_run_folders_have_grids_and_diagnoses(tmp_path):
    sweep = injection_level(only=("baseline", "internal-2d"), seeds=[0, 1])
    runs = tmp_path / "runs"
    write_plan(runs, sweep)
    for cell in sweep.cells:
        write_run(runs, cell.config, lambda epoch: {"FD-digits": 20 / epoch + 1, "recall": 0.5})
        values = {"rule": 0.1 * cell.config.seed}
        write_diagnoses(runs, cell.config, [diagnosis_line(cell.config, "own", values)])
    text = written(["--runs", str(runs)], tmp_path / "out")
    assert {"Samples", "Why"} < set(titles_of(text))
    assert "<details><summary>table of all headline values" in text


# ---- several sweeps


def test_a_page_for_each_sweep_or_one_of_all(frozen, tmp_path, capsys):
    other = replace(frozen, axis="another")
    for results in (frozen, other):
        freeze(results, tmp_path / f"{results.axis}.jsonl")
    files = [str(tmp_path / f"{name}.jsonl") for name in ("injection_level", "another")]
    assert report.command(["--records", *files, "--out", str(tmp_path / "each")]) == 0
    assert report.command(["--records", *files, "--out", str(tmp_path / "all"), "--together"]) == 0
    names = ["injection_level_report.html", "another_report.html"]
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == sorted(names)
    text = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert titles_of(text) == [*TITLES, *(title for title in TITLES if title != "The paper's claims")]
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert capsys.readouterr().out.split() == [
        *(str(tmp_path / "each" / name) for name in names),
        str(tmp_path / "all" / "report.html"),
    ]
    assert "The sweep file of another does not ship with the project." in text


def test_an_unknown_metric_is_refused(tmp_path):
    with pytest.raises(UserError, match="Unknown metric 'FD'"):
        report.command(["--records", str(RECORDS), "--out", str(tmp_path), "--metric", "FD"])


# ---- the page itself


def test_what_is_empty_is_not_shown():
    text = page("t", [Sweep("s", "s", "q", [Part("p", "Only text", texts=["a < b"])])])
    body = text[text.index("<body>") :]
    assert "a &lt; b" in body
    assert not re.search(r"<(ul|dl|table|figure|fieldset|pre|details)\b", body)


def test_an_image_says_what_it_shows():
    text = image(PNG, "png", 'a "b"', inches=3.5)
    assert text.startswith('<img src="data:image/png;base64,') and 'alt="a &#34;b&#34;"' in text
    assert 'style="width:3.5in"' in text


def test_a_sweep_with_other_settings_is_repeated_with_them(frozen):
    varied: Results = replace(frozen, axis="injection_level+epochs-2", settings=["train.epochs=2"])
    (commands, _) = report_parts.repetition(varied, []).commands
    assert commands.endswith(
        "sweeps/injection_level.yaml --profile digits --seeds 0 1 2 --set train.epochs=2"
    )
