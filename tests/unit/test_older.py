"""Which older servers a run of the tests finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.older import FIRST_WITH, VARIABLE, find_older, mark_cases, name_cases

pytestmark = pytest.mark.unit


def make_server(directory: Path, version: str) -> Path:
    """Programs that tell no more than their version."""
    directory.mkdir(parents=True)
    for program in ("initdb", "postgres"):
        (directory / program).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        (directory / program).chmod(0o755)
    return directory


def test_named_directories_by_their_versions(tmp_path: Path) -> None:
    one = make_server(tmp_path / "one", "14.20 (Debian 14.20-1)")
    two = make_server(tmp_path / "two", "17.2")
    found = find_older(
        {VARIABLE: os.pathsep.join((str(one), str(two)))}, [make_server(tmp_path / "x", "15.1")]
    )
    assert found == {"postgres-14.20": one, "postgres-17.2": two}


def test_a_directory_without_a_server_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(pytest.UsageError, match=VARIABLE):
        find_older({VARIABLE: str(tmp_path)})


def test_the_first_that_is_installed(tmp_path: Path) -> None:
    there = make_server(tmp_path / "15" / "bin", "15.1")
    assert find_older({}, [tmp_path / "14" / "bin", there]) == {"older": there}
    assert find_older({}, [tmp_path / "14" / "bin"]) == {"older": None}


def test_cases_that_older_servers_do_not_know() -> None:
    cases = {"merge": 1, "update": 2}
    for parameters in (name_cases(cases), mark_cases(cases)):
        assert [p.id for p in parameters] == ["merge", "update"]
        marks = [[mark.args for mark in p.marks] for p in parameters]
        assert marks == [[(FIRST_WITH["merge"],)], []]
