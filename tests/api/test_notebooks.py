"""The notebooks of the documentation run from their first cell to the last."""

import nbclient
import nbformat
import pytest

from tests.support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow  # a kernel, and for one of them a sweep on Ray
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    shown = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "FD-digits" in shown
    assert path.stem != "write_a_source" or "my_source " in shown


def test_a_notebook_is_committed_without_what_it_printed():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), path
