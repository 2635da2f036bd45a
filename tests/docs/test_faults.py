"""The page of faults has a row for each, and each row a test that is there."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from tests.docs.pages import DOCS, ROOT

pytestmark = pytest.mark.docs

PAGE = DOCS / "reference/faults.md"
ROWS = {
    "A": (*range(1, 9), 10, 11, 12, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26, 27, 28, 29),
    "B": (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19),
    "C": (*range(1, 8), 9, 10, 11, 12, *range(14, 20)),
    "D": (*range(1, 7), 8, 9, *range(11, 27)),
    "F": (*range(1, 15), 16, 17, 18, 20, 21, 22),
    "G": (1, 2, *range(4, 19)),
    "E": (1, 2, 3),
}
"""The faults that were thought of, by group; the numbers in between were given up."""

_ROW = re.compile(r"^\| ([A-Z]\d\d) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_TEST = re.compile(r"\[([\w.]+)\]\(\.\./\.\./(tests/[\w/.]+)\)")


def read_rows() -> list[Sequence[str]]:
    """Number, fault, what happens and tests of each row."""
    return _ROW.findall(PAGE.read_text("utf-8"))


def test_every_fault_has_a_row_in_order() -> None:
    expected = [f"{group}{number:02}" for group, numbers in ROWS.items() for number in numbers]
    assert [row[0] for row in read_rows()] == expected


def test_every_row_names_a_test() -> None:
    without = {number for number, _, _, shown in read_rows() if not _TEST.search(shown)}
    assert without == set()


def test_every_test_is_there() -> None:
    found = _TEST.findall(PAGE.read_text("utf-8"))
    assert found
    assert [path for name, path in found if not path.endswith(f"/{name}")] == []
    assert sorted({path for _, path in found if not (ROOT / path).is_file()}) == []
