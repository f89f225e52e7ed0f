"""The documentation names what there is: every file on the folder map, every option on the page of
its command.

Its links are checked here as they work in the repository; `mkdocs build --strict` checks them on
the site.
"""

import importlib
import re

import pytest

from mirai_bench.__main__ import COMMANDS
from tests.support.architecture import FLOORS
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
MAP = DOCS / "map.md"
PACKAGE = ROOT / "mirai_bench"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
SCRIPTS = sorted(path.stem for path in (ROOT / "analysis").glob("*.py") if "def command(" in path.read_text())

# The forms of a command whose options its page lists.
FORMS = {
    "sweep": ["", "status", "search"],
    "evaluate": ["", "compare", "reference"],
    "tokenizer": ["train", "measure"],
    "checkpoint": ["import", "export"],
    "benchmark": ["train", "sample", "evaluate", "data", "sweep", "targets", "parity"],
}


def page_of(command):
    return DOCS / "commands" / f"{command.replace('.', '-')}.md"


def named(pages):
    return {"ids": [str(page.relative_to(ROOT)) for page in pages]}


# ---- the folder map


def test_the_folder_map_names_every_file_and_no_other():
    on_the_map = re.findall(r"^\| `([\w/]+\.py)` \|", MAP.read_text(), re.MULTILINE)
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert len(on_the_map) == len(set(on_the_map)), "a file has one line"
    assert set(on_the_map) == files


def test_each_file_stands_below_its_room():
    for section in re.split(r"^## ", MAP.read_text(), flags=re.MULTILINE)[1:]:
        room, _, text = section.partition("\n")
        rooms = {
            file.partition("/")[0] for file in re.findall(r"^\| `([\w/]+/\w+\.py)` \|", text, re.MULTILINE)
        }
        assert rooms <= {room}


def test_the_folder_map_shows_the_rooms_from_top_to_bottom():
    """Rooms of one floor stand on one line."""
    lines = re.findall(r"^\| (\[.*?) \|", MAP.read_text(), re.MULTILINE)
    shown = [set(re.findall(r"\[(\w+)\]", line)) for line in lines]
    there = [{room for room in floor if (PACKAGE / room).is_dir()} for floor in reversed(FLOORS)]
    assert shown == [rooms for rooms in there if rooms]


def test_the_reference_has_a_page_for_every_room():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    pages = {path.stem: path.read_text() for path in (DOCS / "api").glob("*.md") if path.stem != "index"}
    assert pages.keys() == rooms
    assert all(f"::: mirai_bench.{room}" in text for room, text in pages.items())


# ---- commands


def test_every_command_has_a_page():
    modules = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    pages = {path.stem for path in (DOCS / "commands").glob("*.md")}
    wanted = {page_of(command).stem for command in {*COMMANDS, *modules}}
    assert pages == wanted | {"index", "analysis"}


def missing_options(command, words, page, capsys):
    """Returns the options that `--help` lists and the page does not name."""
    with pytest.raises(SystemExit) as ended:
        command([*filter(None, words), "--help"])
    assert ended.value.code == 0
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", capsys.readouterr().out)) - {"--help"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text()))
    return options - named


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_names_its_options(name, capsys):
    package = f"mirai_bench.{name}"
    has_main = importlib.util.find_spec(package).submodule_search_locations is not None
    module = importlib.import_module(f"{package}.__main__" if has_main else package)
    command = getattr(module, "command", None) or module.main
    for form in FORMS.get(name, [""]):
        assert missing_options(command, [form], page_of(name), capsys) == set(), form


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_page_of_the_analysis_scripts_names_their_options(script, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    page = DOCS / "commands" / "analysis.md"
    assert f"`{script}.py`" in page.read_text()
    assert missing_options(importlib.import_module(script).command, [], page, capsys) == set()


# ---- links


@pytest.mark.parametrize("page", PAGES, **named(PAGES))
def test_links_lead_to_files_of_the_repository(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]
    lost = [link for link in links if link and not (page.parent / link).is_file()]
    assert lost == []


# ---- what the pages say can be run


def blocks(page):
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_other_commands_than_python_in_bash_blocks_are_known():
    """What the nightly test does not run: the installation and the tests themselves."""
    words = {line.split()[0] for page in PAGES for block in blocks(page) for line in block.splitlines()}
    assert words <= {"python", "mirai-bench", "pip", "pytest", "pre-commit"}
