"""Links between pages that are read in a repository, as they have to be on a site.

In the repository a page links to files outside of `docs/`: to the README, to tests. On the site
the pages of the root are below `project/`, and other files are not there, so that only a link's
text is left of it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

PROJECT = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
}
"""Pages of the repository's root, and where they are on the site."""
_FOLDERS = ("tutorial/", "how-to/", "reference/", "explanation/")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)


def rewrite_links(text: str, *, source: str, target: str) -> str:
    """`text` of the file `source` in the repository, for the page `target` of the site.

    Code blocks stay as they are.
    """
    parts = _FENCE.split(text)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda m: _rewrite(m, source, target), part)
        for part in parts
    )


def _rewrite(match: re.Match[str], source: str, target: str) -> str:
    picture, shown, link = match.groups()
    path, hash_sign, anchor = link.partition("#")
    if not path or "://" in path:
        return match[0]
    meant = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = PROJECT.get(meant) or (meant.removeprefix("docs/") if meant.startswith("docs/") else "")
    if not page.endswith(".svg" if picture else ".md"):
        return shown
    relative = posixpath.relpath(page, posixpath.dirname(target) or ".")
    return f"{picture}[{shown}]({relative}{hash_sign}{anchor})"


def read_navigation(index: str, *, reference: Mapping[str, str]) -> list[dict[str, Any]]:
    """The site's navigation: sections and pages in the order in which the index lists them.

    `reference` maps titles of further reference pages to their paths. Raises `ValueError` for an
    index without sections.
    """
    found: list[dict[str, Any]] = [{"Documentation": "index.md"}]
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        pages = [{m[2]: m[3]} for m in _LINK.finditer(body) if m[3].startswith(_FOLDERS)]
        if title == "Reference":
            pages += [{name: path} for name, path in reference.items()]
        found.append({title: pages})
    if len(found) == 1:
        raise ValueError("the index lists no section")
    return [*found, {"Project": [{_name(page): page} for page in PROJECT.values()]}]


def _name(page: str) -> str:
    return posixpath.basename(page).removesuffix(".md").capitalize()
