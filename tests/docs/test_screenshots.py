"""Pictures show what the commands print today."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy.engine import URL

from tests.docs.pages import ROOT
from tests.docs.screenshots import PICTURE, TITLE, settle, take_text
from website.terminal import draw_terminal

pytestmark = pytest.mark.docs


def read_picture(svg: str) -> str:
    """The text of a picture, a line for each of its rows."""
    rows = [one for one in ET.fromstring(svg).iter() if one.tag.endswith("text")]
    text = "\n".join("".join(row.itertext()) for row in rows)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_picture_is_what_a_terminal_shows(tmp_path: Path, bare_database_url: URL) -> None:
    text = settle(take_text(tmp_path, bare_database_url))
    expected = draw_terminal(text, title=TITLE)
    assert read_picture(PICTURE.read_text("utf-8")) == read_picture(expected)
    assert PICTURE.read_text("utf-8") == expected, "python -m tests.docs.screenshots takes it again"


def test_the_readme_shows_it() -> None:
    assert f"({PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text("utf-8")


def test_what_a_program_prints_is_data_in_a_picture() -> None:
    svg = draw_terminal("$ say\n</text><script>\x1b[31mred\x1b[0m & plain", title="<&>")
    assert read_picture(svg) == "$ say\n</text><script>red & plain"
    assert "<script>" not in svg
    assert 'fill="#e06c75">red<' in svg
