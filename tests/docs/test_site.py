"""The documentation as a site: navigation, links and pictures, without MkDocs."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.docs.pages import DOCS, ROOT, list_blocks
from website.links import PROJECT, read_navigation, rewrite_links
from website.picture import draw
from website.reference import list_pages, write_reference

pytestmark = pytest.mark.docs


def test_the_navigation_has_every_page_once() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    sections = read_navigation(index, reference=list_pages())
    listed = [
        path
        for section in sections[1:]
        for pages in section.values()
        for page in pages
        for path in page.values()
    ]
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"index.md"}
    assert sorted(listed) == sorted({*pages, *PROJECT.values(), *list_pages().values()})


def test_an_index_without_sections_is_refused() -> None:
    with pytest.raises(ValueError, match="no section"):
        read_navigation("# Documentation\n", reference={})


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../how-to/restore.md#drill", "[x](../how-to/restore.md#drill)"),
        ("#here", "[x](#here)"),
        ("https://semver.org/", "[x](https://semver.org/)"),
        ("../../README.md#what-it-costs", "[x](../project/readme.md#what-it-costs)"),
        ("../../CONTRIBUTING.md", "[x](../project/contributing.md)"),
        ("../../tests/unit/test_seal.py", "x"),
        ("../../LICENSE", "x"),
    ],
)
def test_links_lead_to_pages_of_the_site_or_nowhere(link: str, expected: str) -> None:
    source, target = "docs/explanation/secrecy.md", "explanation/secrecy.md"
    text = rewrite_links(f"a [x]({link}) b", source=source, target=target)
    assert text == f"a {expected} b"
    block = f"```text\n[x]({link})\n```\n"
    assert rewrite_links(block, source=source, target=target) == block


def test_pages_of_the_root_lead_into_the_site() -> None:
    text = "[d](docs/index.md) [s](SECURITY.md) [l](LICENSE) ![p](docs/images/first-look.svg)"
    found = rewrite_links(text, source="README.md", target="project/readme.md")
    assert found == "[d](../index.md) [s](security.md) l ![p](../images/first-look.svg)"


def test_every_public_name_has_its_docstring_on_a_page() -> None:
    named = {
        name
        for text in write_reference().values()
        for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)
    }
    assert {"oplog.Oplog", "oplog.errors.OplogError", "oplog.migration.CreateOplogOp"} < named


def list_diagrams() -> list[tuple[str, str]]:
    pages: list[Path] = sorted(DOCS.rglob("*.md"))
    return [
        (b.where, b.text) for page in pages for b in list_blocks(page) if b.language == "diagram"
    ]


@pytest.mark.parametrize(("where", "text"), list_diagrams(), ids=[d[0] for d in list_diagrams()])
def test_a_picture_has_all_words_of_its_diagram_where_they_stood(where: str, text: str) -> None:
    tree = ET.fromstring(draw(text))
    shown = [one for one in tree.iter() if one.tag.endswith("text")]
    words = [word for line in text.split("\n") for word in re.split(r"[\s─│┌┐└┘├┤┬┴┼]+", line)]
    assert sorted(" ".join(str(one.text) for one in shown).split()) == sorted(filter(None, words))
    first = text.split("\n", maxsplit=1)[0]
    begins = len(first) - len(first.lstrip())
    if first.strip()[0].isalnum():
        assert float(shown[0].attrib["x"]) == pytest.approx(begins * 8.4)


def test_lines_of_a_box_meet() -> None:
    tree = ET.fromstring(draw("┌─┐\n│ │\n└─┘"))
    ends = []
    for one in tree.iter():
        if one.tag.endswith("path"):
            start, end = re.findall(r"([\d.]+) ([\d.]+)", one.attrib["d"])
            ends += [start, end]
    # Each corner and each middle of an edge is where two lines meet.
    assert {point for point in ends if ends.count(point) == 1} == set()


def test_the_configuration_of_the_site_is_strict() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "strict: true" in text
    # With --quiet MkDocs counts no warnings, and a broken link passes.
    assert "--quiet" not in (ROOT / "Makefile").read_text("utf-8").partition("mkdocs")[2][:40]
