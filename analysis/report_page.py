"""What a page of a report is made of, and how it becomes one file of HTML that needs no other."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common import rendered
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from mirai_bench.results.writers import Grid

HERE = Path(__file__).parent
TEMPLATE = "report.html.jinja"
SCRIPT = "report.js"


class Arm(NamedTuple):
    """An arm that can be switched off in a picture."""

    number: int
    """The place of the arm in its sweep, which its curves carry."""
    name: str
    colour: str


class Verdict(NamedTuple):
    """What a table says of an arm."""

    arm: Arm
    word: str
    """Empty if no looks are planned."""
    said: str
    """What follows the name of the arm in a sentence."""
    measured: str


@dataclass(frozen=True)
class Part:
    """A section of a page. Whatever of it is empty is not shown."""

    name: str
    title: str
    texts: Sequence[str] = ()
    verdicts: Sequence[Verdict] = ()
    arms: Sequence[Arm] = ()
    """Those that can be switched off in the pictures."""
    pictures: Sequence[Markup] = ()
    facts: Sequence[tuple[str, str]] = ()
    """Names and values."""
    grids: Sequence[Grid] = ()
    folded: str = ""
    """What the grids are, if they are shown only when asked for."""
    notes: Sequence[str] = ()
    """Small print."""
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Sweep:
    """A sweep with its parts."""

    name: str
    title: str
    question: str
    parts: Sequence[Part]


def page(title: str, sweeps: Sequence[Sweep]) -> str:
    """Returns the page. All texts are escaped: an arm may be named <script>."""
    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (HERE / SCRIPT).read_text(encoding="utf-8")
    # The page allows this script by its hash, and no other one.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template(TEMPLATE)
    return template.render(title=title, sweeps=sweeps, script=Markup(script), script_hash=digest) + "\n"


# ---- pictures


def image(content: bytes, kind: str, alt: str, inches: float | None = None) -> Markup:
    """Returns an image with its content inside the page. `kind` is png or svg.

    It is as wide as the page, or so many inches, and then scrolls in its box.
    """
    kinds = {"png": "image/png", "svg": "image/svg+xml"}
    source = f"data:{kinds[kind]};base64,{base64.b64encode(content).decode()}"
    if inches is None:
        return Markup('<img src="{}" alt="{}">').format(source, alt)
    return Markup('<img src="{}" alt="{}" style="width:{}in">').format(source, alt, f"{inches:g}")


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Returns a figure as part of the page, without its own title.

    What belongs to the arm of number N has the class `arm-N` there. All ids begin with `name`, so that
    several figures can stand in one page.
    """
    text = rendered(figure, "svg", title=False).decode()
    text = text[text.index("<svg") :]
    # Comments hold the texts of the figure, and are not needed.
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for size in ("width", "height"):
        text = re.sub(rf'(<svg [^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="arm-(\d+)-[^"]*"', r'class="arm-\1"', text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#|url\(#', lambda found: f"{found.group()}{name}-", text)
    # The text is matplotlib's own, in which whatever comes from records is drawn and not written.
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    return Markup(text.replace("<svg", label, 1))


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
