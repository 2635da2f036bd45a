"""The list of what runs in one environment only stays true."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.environments import ROOT, UNAFFECTED, is_unaffected

pytestmark = pytest.mark.architecture

MODULES = sorted((ROOT / "tests").rglob("test_*.py"))
AFFECTED = ("alembic", "google", "oplog.capture", "oplog.migration", "oplog.postgres.derivation")
"""Where the library talks to SQLAlchemy's ORM, Alembic and protobuf."""


def list_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_pattern_names_a_module() -> None:
    patterns = [pattern for group in UNAFFECTED.values() for pattern in group]
    unmatched = [p for p in patterns if not list((ROOT / "tests").glob(p))]
    assert unmatched == []
    assert sorted(set(patterns)) == sorted(patterns)


def test_no_module_left_out_tests_what_talks_to_sqlalchemy() -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in MODULES
        if is_unaffected(path)
        if (found := {one for one in list_imports(path) if one.startswith(AFFECTED)})
    }
    assert wrong == {}


def test_capture_is_tested_in_both_environments() -> None:
    kept = {path.name for path in MODULES if not is_unaffected(path)}
    assert kept >= {
        "test_adopt.py",
        "test_archive_bytes.py",
        "test_attach.py",
        "test_capture_rows.py",
        "test_codec.py",
        "test_drivers.py",
        "test_migration.py",
        "test_sealed_bytes.py",
        "test_ways.py",
    }
