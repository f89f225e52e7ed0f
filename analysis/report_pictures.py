"""The parts of a report that are pictures: curves, differences, samples, what diagnostics found."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

from common import DOTS, look, rendered
from convergence import draw
from diagnose import figures_of
from diagnosis_table import document, headlines, rows_of
from fid_table import draw_differences
from PIL import Image
from profiles import known_diagnostics
from report_page import Arm, Part, image, inline_svg
from sample_grid import chosen
from sample_grid import draw as draw_samples

from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.frame import Results
from mirai_bench.results.table import Table
from mirai_bench.utils.errors import UserError

NARROW = 6.5  # inches, of figures that are also to be read on a phone


def arms_of(results: Results) -> list[Arm]:
    """Returns the arms of a sweep with their colours, as they are in every figure."""
    looks = look(results)
    return [Arm(number, arm, looks[arm][0]) for number, arm in enumerate(results.arms)]


def curves(results: Results, metric: str) -> Part:
    """Returns the curves of a metric against epochs. Each arm can be switched off."""
    figure = draw(results, metric, "epochs", width=NARROW)
    _, _, how_to_read = figure.get_suptitle().partition("\n")
    alt = f"{metric} against epochs, {len(results.arms)} arms"
    picture = inline_svg(figure, f"{results.name}-curves", alt)
    return Part("curves", "Convergence", arms=arms_of(results), pictures=[picture], notes=[how_to_read])


def differences(results: Results, table: Table) -> Part:
    """Returns the differences to the baseline at the evaluation of the table."""
    figure = draw_differences(results, table, NARROW)
    alt = f"{table.metrics[0]}: difference of each arm to {table.baseline}"
    _, _, how_to_read = figure.get_suptitle().rpartition("\n")
    pictures = [image(rendered(figure, "svg", title=False), "svg", alt)]
    return Part("differences", "Paired differences", pictures=pictures, notes=[how_to_read])


def samples(results: Results, folders: Iterable[Path]) -> Part | None:
    """Returns the grids of samples of the first seed, or a picture of them that one of the folders has."""
    files = (folder / f"{results.name}_samples.png" for folder in folders)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            seeds = [results.cells[0]["seed"]]
            figure = draw_samples(results, chosen(results, None), seeds, Path(scratch))
        content = rendered(figure, "png")
    except UserError:  # there are no grids: frozen records do not hold them
        content = next((path.read_bytes() for path in files if path.is_file()), b"")
    if not content:
        return None
    with Image.open(io.BytesIO(content)) as opened:
        inches = opened.width / DOTS
    text = "In all columns the same place has the same class and the same random numbers."
    picture = image(content, "png", "samples of all arms", inches)
    return Part("samples", "Samples", texts=[text], pictures=[picture])


def diagnostics(diagnoses: Diagnoses) -> Part:
    """Returns the figures of all diagnostics, and the table of their headline values."""
    pictures = []
    for name in diagnoses.diagnostics:
        for figure in figures_of(diagnoses, name).values():
            # The title says what is looked at, which no other place does.
            pictures.append(image(rendered(figure, "svg"), "svg", f"diagnostic {name}"))
    rows = rows_of(diagnoses, headlines(diagnoses, known_diagnostics()))
    texts = document(diagnoses, rows, known_diagnostics())
    folded = "table of all headline values"
    return Part("diagnostics", "Why", pictures=pictures, grids=texts.grids, folded=folded, notes=texts.notes)


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
