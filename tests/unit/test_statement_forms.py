"""Statements of published migrations are counted by form, without names and values."""

from __future__ import annotations

import pytest

from tests.histories.forms import list_forms, name_form
from tests.histories.results import Ending, History, Step, print_forms, print_report
from tests.histories.rows import NoValueError, draw_text

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("statement", "form"),
    [
        ("SELECT 1", ""),
        ("UPDATE alembic_version SET version_num='a'", ""),
        ("ALTER TABLE a RENAME x TO y", "ALTER TABLE RENAME COLUMN"),
        ("ALTER TABLE a RENAME TO b", "ALTER TABLE RENAME TO"),
        (
            "\nALTER TABLE a\n  ALTER COLUMN x TYPE INT USING x::int",
            "ALTER TABLE ALTER COLUMN TYPE USING",
        ),
        (
            "ALTER TABLE a ADD COLUMN x INT DEFAULT 1 NOT NULL",
            "ALTER TABLE ADD COLUMN DEFAULT NOT NULL",
        ),
        (
            "ALTER TABLE a ADD COLUMN x UUID DEFAULT gen_random_uuid()",
            "ALTER TABLE ADD COLUMN DEFAULT expression",
        ),
        (
            "-- why\nALTER TABLE a DROP CONSTRAINT a_pkey",
            "ALTER TABLE DROP CONSTRAINT (primary key)",
        ),
        ("ALTER TYPE mood RENAME VALUE 'a' TO 'b'", "ALTER TYPE RENAME VALUE"),
        ("INSERT INTO a SELECT * FROM b", "INSERT SELECT"),
        ("WITH x AS (SELECT 1) UPDATE a SET b = 1", "WITH … UPDATE"),
        ("DROP INDEX i", "DROP INDEX"),
    ],
)
def test_forms(statement: str, form: str) -> None:
    assert name_form(statement) == form


def test_each_form_is_listed_once() -> None:
    assert list_forms(["DROP TABLE a", "SELECT 1", "DROP TABLE b"]) == ["DROP TABLE"]


@pytest.mark.parametrize(
    ("base", "text"),
    [
        ("character varying(5)", "me-42"),
        ("text", "name-42"),
        ("numeric(4,2)", "42"),
        ("numeric(3,3)", "0"),
        ("integer[]", '{"42"}'),
        ("smallint", "42"),
        ("bytea", "\\x0000002a"),
    ],
)
def test_values(base: str, text: str) -> None:
    assert draw_text(base, "name", 42) == text


def test_an_unknown_type_has_no_value() -> None:
    with pytest.raises(NoValueError, match="pg_lsn"):
        draw_text("pg_lsn", "name", 1)


def test_the_report_groups_failures_by_kind() -> None:
    steps = [
        Step("app", "a1", "first", forms=["DROP TABLE"]),
        Step("app", "b2", "second", stage="verify", error="row 12 of 'x' differs"),
        Step("app", "c3", "third", stage="verify", error="row 13 of 'y' differs"),
    ]
    history = History("app", "1.0", "PostgreSQL 18", steps=steps)
    history.endings = [Ending("app", "restore"), Ending("app", "as of a1", refused="lost")]
    report = print_report([history])
    assert "| app | 1.0 | 3 | 1 | 2 | 1 | 1 | 0 |" in report
    assert "### 2 times: verify: row … of … differs" in report
    assert "| DROP TABLE | app (1): a1 |" in print_forms([history])
    assert history.failed
