"""Plain English: phrases that docstrings, comments, messages and pages do not use.

A module docstring says what the module does and what a reader must know to change it. Formulas
such as "The hard thing is …" say the same of every module, and became false unnoticed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.architecture

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for path in (ROOT / "oplog").rglob("*.py") if "_proto" not in path.parts)
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

FORMULA = re.compile(
    r"\bhard (?:part|thing|things)\b|\bmust not know\b|\bmust know nothing\b|\bhard is\b",
    re.IGNORECASE,
)
"""What module docstrings said of every module."""
TRANSLATED = re.compile(r"\bwh(?:o|om)(?:so)?ever\b|\bwhat is told\b|\bthe deed\b", re.IGNORECASE)
"""Words that no technical manual needs: name the role, the caller or the process instead."""


def find_formulas(docstring: str) -> list[str]:
    """The formulas of a docstring, also where a line ends in the middle of one."""
    return FORMULA.findall(" ".join(docstring.split()))


def find_translated(text: str) -> Iterator[str]:
    """Line numbers with the words that stand there; a phrase may go on in the next line."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        following = lines[number] if number < len(lines) else ""
        joined = f"{line.strip()} {following.strip().lstrip('# ')}"
        for found in TRANSLATED.finditer(joined):
            if found.start() < len(line.strip()):
                yield f"{number}: {found[0]}"


def test_module_docstrings_use_no_formula() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): formulas
        for path in MODULES
        if (formulas := find_formulas(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""))
    }
    assert found == {}


def test_prose_names_who_acts() -> None:
    found = [
        f"{path.relative_to(ROOT).as_posix()}:{where}"
        for path in (*MODULES, *PAGES)
        for where in find_translated(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "docstring",
    [
        "Reads rows.\n\nPure. Must not\nknow the database.",
        "Reads rows. The hard\nthing is speed.",
        "Reads rows. The one hard part: speed.",
    ],
)
def test_formulas_are_found_across_lines(docstring: str) -> None:
    assert find_formulas(docstring)


def test_a_plain_docstring_has_no_formula() -> None:
    assert find_formulas("Reads rows. Hardware is not known here.") == []


def test_phrases_are_found_in_code_and_across_lines() -> None:
    assert list(find_translated("x = 1  # Whoever reads\n# what is\n# told")) == [
        "1: Whoever",
        "2: what is told",
    ]
