"""A MkDocs hook: links of a page to any file of the repository work on the site, too.

A Markdown file outside docs/ that a page links to (a report, CONTRIBUTING.md) becomes a page of the
site; any other file (a figure, a sweep file) is copied. Both keep their path, so that their own
links work too.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = "docs/"
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")  # of the navigation, whether or not a page links to them
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)\s#])")
log = get_plugin_logger(__name__)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files of the repository that pages link to, and those that these link to in turn."""
    root = Path(config.config_file_path).parent
    pages = [DOCS + file.src_uri for file in files.documentation_pages()]
    waiting = [*PAGES, *(target for page in pages for target in _targets(root, page))]
    added: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in added or path.startswith(DOCS):
            continue
        if not (root / path).is_file():
            log.warning("a page links to %s, which is not a file of the repository", path)
            continue
        added.add(path)
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
        if path.endswith(".md"):
            waiting += _targets(root, path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Writes each link to a file as seen from the page's place on the site."""
    source = page.file.src_uri if page.file.generated_by else DOCS + page.file.src_uri
    folder = posixpath.dirname(page.file.src_uri)

    def on_site(match: re.Match[str]) -> str:
        target = _resolve(source, match[0])
        if target is None:
            return match[0]
        return posixpath.relpath(target.removeprefix(DOCS), folder or ".")

    return LINK.sub(on_site, markdown)


def _targets(root: Path, page: str) -> Iterator[str]:
    """Paths in the repository that a Markdown file links to."""
    for link in LINK.findall((root / page).read_text(encoding="utf-8")):
        target = _resolve(page, link)
        if target is not None:
            yield target


def _resolve(page: str, link: str) -> str | None:
    """The repository path that a relative link of `page` means; None for the address of another site."""
    if re.match(r"[a-z]+:|/", link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(link)))
