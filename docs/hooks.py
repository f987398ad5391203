"""What MkDocs is given: the repository's own pages, each in its place, and those that ``docs/made.py`` makes.

A page of ``docs/`` has a path with ``docs/`` in it, as in the repository, so that relative links are right in both. It
is published without it. What a page links to, and is no page, is published as a file; a folder by its README.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "build" / "docs"
LIBRARY = "docs/reference/library.md"
OWN_FILES = ("docs/extra.css", "docs/iframe-worker.js")
"""What mkdocs.yml adds to each page: these keep their place."""
LINK = re.compile(
    r'(?P<before>\]\(|<(?:img|iframe)[^>]* src=")(?P<path>[^)#":\s]+)(?P<anchor>#[^)"\s]*)?(?P<after>[)"])'
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, our own beside them, the navigation's pages, and all that these link to."""
    found = Files([each for each in files if each.src_dir != config.docs_dir])
    for uri in _with_what_they_link_to([*OWN_FILES, *_pages(config.nav)]):
        found.append(_file(uri, config))
    return found


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a folder leads to its README, or else to the page of the library."""
    here = posixpath.dirname(page.file.src_uri)

    def mended(link: re.Match[str]) -> str:
        target = _target(here, link["path"])
        if not (ROOT / target).is_dir():
            return link[0]
        readme = f"{target}/README.md"
        page_of_it = readme if readme in files.src_uris else LIBRARY
        return f"{link['before']}{posixpath.relpath(page_of_it, here or '.')}{link['anchor'] or ''}{link['after']}"

    return LINK.sub(mended, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The theme's search is a dialog without a name, which no screen reader can tell."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')


def _pages(nav: Any) -> Iterator[str]:
    """The files that the navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(each)


def _with_what_they_link_to(pages: list[str]) -> list[str]:
    """Pages, and the files and further pages that are found from them."""
    known, waiting = dict.fromkeys(pages), list(pages)
    while waiting:
        uri = waiting.pop()
        if not uri.endswith(".md"):
            continue
        for link in LINK.finditer(_source(uri).read_text(encoding="utf-8")):
            target = _target(posixpath.dirname(uri), link["path"])
            if target not in known and not target.startswith("..") and _source(target).is_file():
                known[target] = None
                waiting.append(target)
    return list(known)


def _target(folder: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))


def _source(uri: str) -> Path:
    made = MADE / uri
    return made if made.is_file() else ROOT / uri


def _file(uri: str, config: MkDocsConfig) -> File:
    file = File.generated(config, uri, abs_src_path=str(_source(uri)))
    if uri.startswith("docs/") and uri not in OWN_FILES:
        file.dest_uri = file.dest_uri.removeprefix("docs/")
    return file
