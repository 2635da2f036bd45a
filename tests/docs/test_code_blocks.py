"""Every code block of the documentation does what the page says.

Python blocks of a page run in order in one namespace, console blocks in this process or through
a shell, sql blocks on the page's database; each page has a fresh one. `text` and `json` blocks
are compared with what the block before them printed, without ids, hashes, times and sizes. What
is not executed, and why, is listed in `tests/docs/running.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.docs.pages import (
    DOCS,
    PAGES,
    ROOT,
    list_anchors,
    list_blocks,
    list_commands,
    list_links,
    name,
)
from tests.docs.running import NOT_RUN, OUTPUT, RUN, STARTED, PageRun, must_show_an_error

pytestmark = pytest.mark.docs

LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if list_blocks(page)],
    ids=[name(p) for p in PAGES if list_blocks(p)],
)
def test_code_blocks_do_what_the_page_says(
    page: Path, bare_database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PageRun(tmp_path, bare_database_url, monkeypatch)
    try:
        run.begin(page)
        for block in list_blocks(page):
            run.run(block)
            if block.language == "sql":
                assert (run.status == 1) == must_show_an_error(block), (
                    f"{block.where}: {run.output}"
                )
    finally:
        run.close()


def test_commands_are_started_as_a_reader_does_it() -> None:
    started = [
        command.text
        for page in STARTED
        for block in list_blocks(ROOT / page)
        if block.language == "console"
        for command in list_commands(block)
    ]
    assert sum(command.startswith("oplog ") for command in started) >= 3


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_languages_of_blocks_are_known(page: Path) -> None:
    known = RUN | OUTPUT | set(NOT_RUN)
    assert {b.where: b.language for b in list_blocks(page) if b.language not in known} == {}


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in list_links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            lost.append(link)
    assert lost == []


def test_every_page_is_in_the_index() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in list_links(DOCS / "index.md")}
    assert {name(p) for p in DOCS.rglob("*.md") if p.resolve() not in linked} == {"docs/index.md"}
