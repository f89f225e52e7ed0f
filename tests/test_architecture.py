"""The rooms of the package import each other in one order only, and no more than they need.

tests/support/architecture.py states the order, floor by floor. Here the source is checked against
it, and the modules that must stay light are imported in processes of their own, because a heavy
import may hide behind three others.
"""

import ast
import json
import subprocess
import sys

import pytest

from mirai_bench.__main__ import COMMANDS
from mirai_bench.config.load import SWEEPS
from tests.support.architecture import (
    FLOOR_OF,
    FLOORS,
    PACKAGE,
    Import,
    all_imports,
    circles,
    imports_of,
    module_files,
    module_graph,
    room_graph,
    room_of,
    runs_back_up,
)
from tests.support.paths import ROOT

FILE = SWEEPS / "injection_level.yaml"
MODULES = module_files(ROOT)
IMPORTS = all_imports(ROOT)
ROOMS = {room for room in map(room_of, MODULES) if room not in (None, "__main__")}
# Packages that present their entries themselves. The others hold a docstring only, so that
# importing one module of a room does not import the whole room.
FACES = {PACKAGE, "mirai_bench.foresight", "mirai_bench.data.tokenizers"}


def modules_of(*rooms):
    """Returns the names of the modules of some rooms, their commands left out."""
    return [name for name in MODULES if room_of(name) in rooms and not name.endswith("__main__")]


def importers_of(library):
    """Returns every import of a library, or of a part of it, in the package."""
    return [found for found in IMPORTS if found.imported.split(".")[0] == library]


def refuse(imports):
    """Fails, with one line per import, if there are any."""
    lines = [str(found) for found in imports]
    assert not lines, "\n" + "\n".join(lines)


def run_python(code, *argv):
    """Runs code in a process of its own and returns the last line that it prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ---- the order of the rooms


def test_every_room_has_a_place_in_the_order():
    assert set(FLOOR_OF) >= ROOMS
    assert len(FLOOR_OF) == sum(len(rooms) for rooms in FLOORS), "a room stands on one floor"


def test_nothing_lies_loose_beside_the_rooms():
    entries = {path.name for path in (ROOT / PACKAGE).iterdir()} - {"__pycache__"}
    loose = {name for name in entries if not (ROOT / PACKAGE / name / "__init__.py").is_file()}
    assert loose <= {"__init__.py", "__main__.py", "py.typed"}
    folders = {path.parent for path in (ROOT / PACKAGE).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_a_room_imports_itself_and_lower_floors_only():
    refuse(found for found in IMPORTS if runs_back_up(found))


def test_no_rooms_import_each_other_in_a_circle():
    assert circles(room_graph(IMPORTS, MODULES)) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(module_graph(IMPORTS, MODULES)) == []


def test_packages_hold_nothing_but_a_docstring():
    full = []
    for name, path in MODULES.items():
        if path.name != "__init__.py" or name in FACES:
            continue
        body = ast.parse(path.read_text()).body
        texts = [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
        if len(body) != 1 or texts != body:
            full.append(name)
    assert full == []


# ---- libraries


def test_ray_is_imported_in_sweep_only():
    refuse(found for found in importers_of("ray") if room_of(found.importer) != "sweep")


def test_mlflow_is_imported_in_tracking_only():
    """`results` may name its types, and reads runs through tracking.mlflow_store."""
    outside = [found for found in importers_of("mlflow") if room_of(found.importer) != "tracking"]
    refuse(found for found in outside if room_of(found.importer) != "results" or not found.for_types)


def test_torch_fidelity_is_imported_in_functions_of_evaluate_only():
    found = importers_of("torch_fidelity")
    assert found, "the metrics that it computes come from it"
    refuse(each for each in found if room_of(each.importer) != "evaluate" or not each.in_function)


# ---- what is imported when a module is

LIGHT = [
    *modules_of("config", "results"),
    "mirai_bench.tracking.run_folder",
    "mirai_bench.tracking.journal",
    "mirai_bench.sweep.plan",
]
BELOW_SWEEP = modules_of(*(room for room in ROOMS if FLOOR_OF[room] < FLOOR_OF["sweep"]))
ABSENT = {
    "torch": LIGHT,
    "ray": [*LIGHT, *BELOW_SWEEP],
    "mlflow": [*LIGHT, *BELOW_SWEEP],
    "torch_fidelity": modules_of("evaluate", "train"),
    "torchvision": modules_of("train"),
    "mirai_bench.foresight": [*modules_of("model"), "mirai_bench.sample.draws", "mirai_bench.sample.sampler"],
}
IMPORT = """
import importlib, json, sys
absent, *modules = sys.argv[1:]
culprits = []
for module in modules:
    importlib.import_module(module)
    if absent in sys.modules:
        culprits.append(module)
        break
print(json.dumps(culprits))
"""


@pytest.mark.parametrize("absent", ABSENT)
def test_modules_do_not_import_what_they_do_not_need(absent):
    """Names the first module whose import brings it. The modules after that one may bring it, too."""
    assert ABSENT[absent], "packages with empty faces would make this pass without a module"
    assert run_python(IMPORT, absent, *ABSENT[absent]) == []


PLAN = """
import json, sys
from mirai_bench.sweep.__main__ import command
command(sys.argv[1:])
print(json.dumps(sorted({"torch", "ray", "mlflow", "pandas", "sklearn"} & set(sys.modules))))
"""


def test_planning_imports_neither_torch_nor_ray_nor_mlflow(here):
    assert run_python(PLAN, str(FILE), "--dry-run", "--set", f"machine.runs={here}") == []
    assert run_python(PLAN, "status", str(FILE), "--set", f"machine.runs={here}") == []


HELP = """
import contextlib, json, runpy, sys
name = sys.argv[1]
sys.argv = [name, "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module(name, run_name="__main__", alter_sys=True)
print(json.dumps(sorted({"torch", "ray", "mlflow"} & set(sys.modules))))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed_without_torch_ray_and_mlflow(name):
    assert run_python(HELP, f"{PACKAGE}.{name}") == []


SCRIPT = """
import importlib, json, sys
sys.path.insert(0, "analysis")
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({"torch", "ray", "mlflow"} & set(sys.modules))))
"""


@pytest.mark.parametrize(
    "name", ["fid_table", "plot_convergence", "speedup", "sample_grid", "report", "claims", "ladder"]
)
def test_records_become_tables_figures_and_a_page_without_torch(name):
    """Importing it takes seconds, for which every sweep would wait at its end."""
    assert run_python(SCRIPT, name) == []


# ---- the check itself


def test_the_check_sees_imports_wherever_they_stand(tmp_path):
    lines = [
        "import ray",
        "from mirai_bench.train import run",
        "from mirai_bench.train.run import train",
        "if TYPE_CHECKING:",
        "    from mirai_bench.sweep.plan import Plan",
        "def later():",
        "    from ..benchmark import report",
    ]
    path = tmp_path / "sampler.py"
    path.write_text("\n".join(lines))
    found = imports_of(
        "mirai_bench.sample.sampler", path, {"mirai_bench.train.run", "mirai_bench.benchmark.report"}
    )
    me = "mirai_bench.sample.sampler"
    assert found == [
        Import(me, "ray", 1, False, False),
        Import(me, "mirai_bench.train.run", 2, False, False),
        Import(me, "mirai_bench.train.run", 3, False, False),
        Import(me, "mirai_bench.sweep.plan", 5, False, True),
        Import(me, "mirai_bench.benchmark.report", 7, True, False),
    ]
    assert [runs_back_up(each) for each in found] == [False, True, True, True, True]


def test_the_check_sees_neighbours_of_one_floor_and_circles():
    assert runs_back_up(Import("mirai_bench.train.run", "mirai_bench.tokenizer.train", 1, False, False))
    assert not runs_back_up(Import("mirai_bench.train.run", "mirai_bench.evaluate.measure", 1, False, False))
    assert not runs_back_up(Import("mirai_bench.__main__", "mirai_bench.utils.cli", 1, False, False))
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"f"}, "f": {"d"}}
    assert circles(graph) == [["b", "c"], ["d", "e", "f"]]


SMALL_PACKAGE = {
    "__init__.py": '"""A package."""\n',
    "low.py": "from small.top import Top  # against the order\n\nlow, high = 1, 2\n",
    "top.py": '"""Top."""\n\nimport small.low\n\n\ndef size(of: int, by):\n    """Docstring."""\n'
    "    return 1 if of else 2 if by else 3\n",
}


def test_measures_of_a_small_package_by_hand(tmp_path):
    (tmp_path / "small").mkdir()
    for name, text in SMALL_PACKAGE.items():
        (tmp_path / "small" / name).write_text(text)
    script = ROOT / "tests" / "support" / "measure_code.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "small"], capture_output=True, text=True, check=True
    )
    measures = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    assert measures["files"] == "3"
    assert measures["lines"] == "12"
    assert measures["lines of code (no blank lines, comments, docstrings)"] == "5"
    assert measures["lines of a function, median / p90 / longest"] == "3 / 3 / 3"
    assert measures["arguments with a type"] == "50.0 %"
    assert measures["functions with a docstring"] == "100.0 %"
    assert measures["lines with a comment"] == "8.3 %"
    assert measures["lines of docstrings"] == "25.0 %"
    assert measures["`a, b = x, y` per 1,000 lines"] == "125.0"
    assert measures["nested ternaries per 1,000 lines"] == "125.0"
    assert measures["modules that lie flat"] == "2"
    assert measures["circles of modules"] == "1"
