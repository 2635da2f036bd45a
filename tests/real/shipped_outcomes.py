"""Outcomes of tests that an application ships: read from a JUnit file, counted, compared."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

Outcomes = Mapping[str, str]
"""By test id: `passed`, `failed`, `error` or `skipped`."""
WORDS = {"failure": "failed", "error": "error", "skipped": "skipped"}
_WORST = ("error", "failed", "skipped", "passed")


def read_outcomes(path: Path) -> Outcomes:
    """What became of each test; `ValueError` for a file that is not from JUnit's family.

    A test that is listed twice, by its body and by its teardown, has the worse of both.
    """
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as cause:
        raise ValueError(f"{path} has no outcomes: {cause}") from cause
    found: dict[str, str] = {}
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        outcome = next((WORDS[one.tag] for one in case if one.tag in WORDS), "passed")
        found[name] = min(found.get(name, "passed"), outcome, key=_WORST.index)
    return found


def count_outcomes(outcomes: Outcomes) -> str:
    """Such as `59 passed, 3 skipped`; nothing for no tests."""
    counts = Counter(outcomes.values())
    return ", ".join(f"{counts[word]} {word}" for word in reversed(_WORST) if counts[word])


def compare_outcomes(without: Outcomes, attached: Outcomes) -> list[str]:
    """The tests that did not end alike, one line for each."""
    return [
        f"{name}: {without.get(name, 'not run')} without the log, {attached.get(name, 'not run')}"
        " with it"
        for name in sorted({*without, *attached})
        if without.get(name) != attached.get(name)
    ]
