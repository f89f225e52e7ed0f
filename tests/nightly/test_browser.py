"""Tables as HTML, reports, and a sweep in MLflow's interface, open in a browser without an error.

Takes about 2 minutes. Needs Chromium. Screenshots go into the folder that $MIRAI_BENCH_SCREENSHOTS
names, if it is set.
"""

import html
import importlib
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import document, in_html
from mirai_bench.tracking import mlflow_store
from tests.nightly.browser import CHROMIUM, browser
from tests.support.paths import RECORDS, ROOT
from tests.support.servers import MlflowServer, free_port
from tests.support.small_sweeps import ARMS, finish, start

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)"),
]

PAGES = sorted((ROOT / "reports").glob("*.html"))


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


def keep_screenshot(chromium, name: str) -> None:
    folder = os.environ.get("MIRAI_BENCH_SCREENSHOTS")
    if folder:
        chromium.screenshot(Path(folder) / f"{name}.png")


# ---- the browser itself


def test_the_browser_sees_errors_of_a_page(chromium, tmp_path):
    """Without this, pages without errors would say nothing."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><img src=missing.png><p>shown</p><script>"
        "console.error('said'); console.log('harmless'); setTimeout(() => nothing(), 0)</script>"
    )
    chromium.open(page.as_uri())
    chromium.wait_for("shown")
    errors = "\n".join(chromium.errors)
    assert "said" in errors
    assert "nothing is not defined" in errors
    assert "missing.png" in errors
    assert "harmless" not in errors


# ---- tables


def cells_of(page: str) -> list[str]:
    """Returns the texts of all cells in the source of a page."""
    return [html.unescape(text) for text in re.findall(r"<t[hd]>(.*?)</t[hd]>", page)]


def check_table(chromium, page: Path) -> None:
    """Checks that a page opens without an error, and that its tables show what its source says."""
    chromium.open(page.as_uri())
    chromium.wait_for("baseline")
    read_cells = "[...document.querySelectorAll('th, td')].map(cell => cell.innerText)"
    shown = chromium.evaluate(read_cells)
    assert shown == cells_of(page.read_text(encoding="utf-8"))
    assert chromium.errors == []
    keep_screenshot(chromium, page.stem)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_committed_table_opens(chromium, page):
    check_table(chromium, page)


def test_a_built_table_opens(chromium, tmp_path):
    page = tmp_path / "built.html"
    page.write_text(in_html(document(build_table(read_jsonl([RECORDS])[0]))), encoding="utf-8")
    check_table(chromium, page)


# ---- reports

SIZES = {"phone": (390, 844), "desk": (1280, 900)}


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    """The pages of the committed records of a sweep with one panel, and of one with several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "analysis"))
        command = importlib.import_module("report").command
        folder = tmp_path_factory.mktemp("reports")
        data = ROOT / "reports" / "data"
        files = [
            str(data / f"{name}.jsonl") for name in ("injection_level_digits", "real_images_cifar10_cpu")
        ]
        assert command(["--records", *files, "--no-timing", "--out", str(folder)]) == 0
    return lambda name: folder / f"{name}_report.html"


def sized(chromium, size: str) -> None:
    width, height = SIZES[size]
    mobile = size == "phone"
    chromium.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["injection_level", "real_images_cifar10_cpu"])
def test_a_report_opens_and_never_scrolls_sideways(chromium, report_page, name, size):
    sized(chromium, size)
    chromium.open(report_page(name).as_uri())
    chromium.wait_for("How to repeat it")
    assert chromium.errors == []
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert chromium.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    # What is wider than the page scrolls in its own box.
    boxes = "[...document.querySelectorAll('.wide, figure, pre')]"
    wide = f"{boxes}.filter(box => box.scrollWidth > box.clientWidth)"
    assert chromium.evaluate(f"{wide}.every(box => getComputedStyle(box).overflowX === 'auto')")
    assert size == "desk" or chromium.evaluate(f"{wide}.length") > 0
    keep_screenshot(chromium, f"report_{name}_{size}")


def test_a_checkbox_hides_the_curves_of_an_arm(chromium, report_page):
    sized(chromium, "desk")
    chromium.open(report_page("injection_level").as_uri())
    chromium.wait_for("How to repeat it")
    parts = "[...document.querySelectorAll('svg .arm-{}')]"
    shown = f"{parts}.filter(part => getComputedStyle(part).display !== 'none').length"
    before = [chromium.evaluate(shown.format(arm)) for arm in range(5)]
    assert all(count > 12 for count in before), "lines of the seeds, means, changes, names"
    for expected in (0, before[2]):
        chromium.evaluate("document.querySelector('fieldset input[value=\"2\"]').click()")
        after = [chromium.evaluate(shown.format(arm)) for arm in range(5)]
        assert after == [*before[:2], expected, *before[3:]]
    assert chromium.errors == []


def test_a_report_shows_all_curves_without_a_script(chromium, report_page):
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(report_page("injection_level").as_uri())
        chromium.wait_for("How to repeat it")
        assert chromium.evaluate("document.querySelector('fieldset').hidden")
        curve = "getComputedStyle(document.querySelector('svg .arm-1')).display"
        assert chromium.evaluate(curve) == "inline"
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
        chromium.call("Emulation.clearDeviceMetricsOverride")


# ---- MLflow


# Errors of MLflow's own interface: it asks for the user although the server has no login, and its
# layout is adjusted more than once per frame.
OF_MLFLOW = ("/mlflow/users/current", "ResizeObserver loop")


def test_a_sweep_opens_in_mlflow(chromium, sweep_file, tmp_path, figures, stopwatch):
    """The list of runs, the sweep, a run's parameters and metrics, its curves, and its grid of samples."""
    file = sweep_file({name: ARMS[name] for name in ("baseline", "internal")})
    code, _, err = finish(start(file))
    assert code == 0, err
    figures(f"the sweep was trained in {stopwatch():.0f} s")
    words = [f"--backend-store-uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    with MlflowServer(words, free_port(), log=tmp_path / "server.log") as server:
        client = mlflow_store.connect(server.uri)
        experiment = mlflow_store.experiment_id(client, server.uri)
        runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
        all_runs = f"experiments/{experiment}/runs"
        note = client.get_run(runs["small (small)"]).data.tags["mlflow.note.content"]
        by_epoch = note[note.index("#/") + 2 : note.index(")")]  # the link of the sweep to its charts
        one_run = f"{all_runs}/{runs['internal-s0']}"
        parts = {
            all_runs: ["small (small)", "5 matching runs"],
            f"{all_runs}/{runs['small (small)']}": [
                "Charts: all arms by epoch",
                "baseline-s0",
                "internal-s0",
            ],
            by_epoch: ["Group by: arm", "baseline, mean", "internal, mean", "eval/epoch"],
            one_run: ["internal-s0", "eval/FD-digits", "foresight.level", "train/loss"],
            f"{one_run}/model-metrics": ["internal-s0 (eval/FD-digits)"],
            f"{one_run}/artifacts": ["samples", "records.jsonl", "config.yaml"],
            f"{one_run}/artifacts/samples/epoch_0001.00.png": ["epoch_0001.00.png"],
        }
        for number, (part, texts) in enumerate(parts.items()):
            chromium.open(f"{server.uri}/#/{part}")
            chromium.wait_for(*texts)
            keep_screenshot(chromium, f"mlflow_{number}")
            figures(f"{stopwatch():4.0f} s  {part}")
            errors = [error for error in chromium.errors if not any(own in error for own in OF_MLFLOW)]
            assert errors == [], part
        grid = Image.open(next((tmp_path / "runs").glob("*/samples/epoch_0001.00.png")))
        widths = "[...document.images].map(image => image.naturalWidth)"
        chromium.wait_until(f"{widths}.includes({grid.width})")
        keep_screenshot(chromium, "mlflow_grid")
