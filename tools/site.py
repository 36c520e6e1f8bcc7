"""Hooks of mkdocs: what the pages of docs/ link to in the repository becomes part of the site.

The start page is the README. A linked Markdown file becomes a page, as does the README of a linked
folder; any other linked file is copied. So the site is whole, wherever it is served from.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Files of the root that are pages, under the names that these have on the site.
RENAMED = {"README.md": "index.md"}
# A link, as text, target and anchor, or a block of code, where nothing is a link.
LINK = re.compile(
    r"^ *```.*?^ *```|(!?\[[^\]]*\])\((?!https?:|mailto:|#)([^)#\s]+)((?:#[^)\s]*)?)\)",
    re.DOTALL | re.MULTILINE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    found = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    seen = set()
    while found or pages:
        for page in pages:
            found += [
                _source(page.src_uri, link) for _, link, _ in LINK.findall(_text(page)) if link
            ]
        pages = []
        for path in found:
            if path in seen or path.startswith("docs/") or not (ROOT / path).is_file():
                continue
            seen.add(path)
            file = File.generated(config, _place(path), content=(ROOT / path).read_bytes())
            files.append(file)
            if path.endswith(".md"):
                pages.append(file)
        found = []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to the places that the files have on the site.

    A link to a folder without README becomes plain text.

    Raises:
        PluginError: A link or an image leads to nothing.
    """
    del config
    origin = page.file.src_uri

    def lead(match: re.Match) -> str:
        text, link, anchor = match.groups()
        if link is None:
            return match[0]
        path = _source(origin, link)
        place = _place(path)
        if files.get_file_from_path(place) is None:
            if text.startswith("!") or not (ROOT / path).is_dir():
                raise PluginError(f"{origin}: {text}({link}) leads to nothing")
            return text.strip("[]")
        return f"{text}({posixpath.relpath(place, posixpath.dirname(origin))}{anchor})"

    return LINK.sub(lead, markdown)


def _text(page: File) -> str:
    return page.content_string if page.generated_by is None else page.content_bytes.decode("utf-8")


def _source(page: str, link: str) -> str:
    """Return what a link of a page names, as a path in the repository. A folder is its README."""
    names = {place: path for path, place in RENAMED.items()}
    origin = names.get(page, page if (ROOT / page).is_file() else f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def _place(path: str) -> str:
    """Return where a file of the repository is on the site."""
    return RENAMED.get(path, path.removeprefix("docs/"))
