"""Rows that cannot be are refused, also of the owner; an older log comes to that by an upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from oplog import Finding
from oplog.doctor.inspection import list_guard_problems
from oplog.migration import UpgradeOplogOp
from oplog.schema import row_checks
from oplog.schema.row_checks import ROW_CHECKS, find_check_faults
from oplog.store.housekeeping import list_row_checks
from tests.logged import LoggedDatabase, open_logged, run
from tests.models.bank import Account, Base
from tests.partitioned import list_partitions, shrink_partitions
from tests.postgres.spoiling import allow_statement

pytestmark = pytest.mark.postgres

TOO_FAR = str(1 << 62)
GOOD: dict[str, dict[str, str]] = {
    "oplog_record": {
        "position": "7",
        "record_id": "gen_random_uuid()",
        "format": "2",
        "key_id": "''",
        "data": "'x'",
        "parts": "1",
        "aggregates": "ARRAY['a']",
        "record_hash": "sha256('')",
        "created_at": "now()",
    },
    "oplog_part": {"position": "7", "number": "1", "first": "0", "data": "'x'"},
    "oplog_entry": {"aggregate_name": "'a'", "version": "1", "position": "0"},
    "oplog_ticket": {"aggregate_name": "'a'", "version": "0"},
    "oplog_type": {
        "type_name": "'t'",
        "revision": "1",
        "shape": "'{}'",
        "descriptor": "''",
    },
    "oplog_type_numbers": {
        "type_name": "'t'",
        "revision": "1",
        "database_id": "'1/2'",
        "table_oid": "3",
        "columns": "'{}'",
    },
    "oplog_key": {"key_id": "repeat('k', 128)", "check_value": "sha256('')"},
    "oplog_pruned": {
        "number": "1",
        "archive_id": "gen_random_uuid()",
        "url": "'memory:'",
        "generation": "0",
        "sequence": "0",
        "chain": "sha256('')",
        "position": "1",
        "entries": "0",
    },
}
"""A row of each table, at its limits; what has a default is left out."""
BAD: dict[str, list[tuple[str, str]]] = {
    "oplog_record_bounds": [
        ("position", "0"),
        ("position", TOO_FAR),
        ("parts", "0"),
        ("created_at", "'infinity'"),
        ("created_at", "'-infinity'"),
    ],
    "oplog_record_hash": [
        ("record_hash", "''"),
        ("record_hash", "'x'"),
        ("record_hash", "sha256('') || '\\x00'::bytea"),
    ],
    "oplog_part_number_check": [("number", "0"), ("number", "-1")],
    "oplog_part_first_check": [("first", "-1")],
    "oplog_part_bounds": [
        ("position", "0"),
        ("position", TOO_FAR),
        ("number", "65536"),
        ("data", "convert_to(repeat('x', 18874369), 'UTF8')"),
    ],
    "oplog_entry_version_check": [("version", "0")],
    "oplog_entry_position_check": [("position", "-1")],
    "oplog_ticket_version_check": [("version", "-1")],
    "oplog_type_revision_check": [("revision", "0")],
    "oplog_type_form": [
        ("type_name", "''"),
        ("type_name", "repeat('t', 513)"),
        ("shape", "'[]'"),
        ("descriptor", "convert_to(repeat('x', 4194305), 'UTF8')"),
    ],
    "oplog_type_numbers_form": [
        ("type_name", "''"),
        ("revision", "0"),
        ("database_id", "''"),
        ("table_oid", "0"),
        ("columns", "'1'"),
    ],
    "oplog_key_form": [
        ("key_id", "''"),
        ("key_id", "repeat('k', 129)"),
        ("check_value", "''"),
        ("check_value", "sha256('') || 'x'::bytea"),
        ("created_at", "'infinity'"),
    ],
    "oplog_pruned_form": [
        ("number", "0"),
        ("url", "''"),
        ("generation", "-1"),
        ("sequence", "-1"),
        ("chain", "''"),
        ("position", "0"),
        ("position", TOO_FAR),
        ("entries", "-1"),
    ],
}
"""By constraint, what no value of a column is."""
CASES = [(name, column, value) for name, cases in BAD.items() for column, value in cases]


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT oplog.oplog_make_partitions({TOO_FAR})")
        yield connection


def insert(connection: Connection, table: str, **changed: str) -> None:
    row = {**GOOD[table], **changed}
    connection.exec_driver_sql(
        f"INSERT INTO oplog.{table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
    )


@pytest.mark.parametrize(("name", "column", "value"), CASES)
def test_a_row_that_cannot_be_is_refused(
    connection: Connection, name: str, column: str, value: str
) -> None:
    (check,) = [one for one in ROW_CHECKS if one.name == name]
    with pytest.raises(IntegrityError) as refused, connection.begin_nested():
        insert(connection, check.table, **{column: value})
    original: Any = refused.value.orig
    assert (original.sqlstate, original.diag.constraint_name) == ("23514", name)
    # It is this constraint that refuses, and nothing else.
    connection.exec_driver_sql(allow_statement(name))
    insert(connection, check.table, **{column: value})


@pytest.mark.parametrize("table", GOOD)
def test_a_row_at_the_limits_is_taken(connection: Connection, table: str) -> None:
    insert(connection, table)


def test_every_constraint_was_considered() -> None:
    assert set(BAD) == {check.name for check in ROW_CHECKS}
    assert set(GOOD) == {check.table for check in ROW_CHECKS}
    assert len({(check.table, check.name) for check in ROW_CHECKS}) == len(ROW_CHECKS)


def test_partitions_have_them(connection: Connection) -> None:
    found = set(
        connection.exec_driver_sql(
            "SELECT conrelid::regclass::text, conname::text FROM pg_constraint "
            "WHERE contype = 'c' AND connamespace = 'oplog'::regnamespace"
        ).all()
    )
    for number in ("0", "1", str((1 << 62) >> 22)):
        for check in ROW_CHECKS:
            if check.table in {"oplog_record", "oplog_part"}:
                assert (f"oplog.{check.table}_p{number}", check.name) in found


def test_partitions_that_are_dropped_meanwhile_are_no_failure(engine: Engine) -> None:
    """A snapshot shows them, but PostgreSQL can no longer print what they consist of."""
    shrink_partitions(engine, 8)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.exec_driver_sql("SELECT 1")
        run(engine, *(f"DROP TABLE {name}" for name in list_partitions(engine)[-1].tables))
        assert find_check_faults(list_row_checks(connection, "oplog")) == []


# -- older logs, and altered ones ------------------------------------------------------------


@pytest.fixture
def logged(engine: Engine) -> LoggedDatabase:
    logged = open_logged(engine, Base)
    with logged.sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=1))
    return logged


def upgrade(engine: Engine) -> None:
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        operations.invoke(UpgradeOplogOp(1))


def diagnose(logged: LoggedDatabase) -> dict[str, list[Finding]]:
    """What doctor says of constraints, by kind."""
    with logged.engine.connect() as connection:
        found = [f for f in logged.log.diagnose(connection) if f.what.startswith("log-constraint")]
    return {kind: [f for f in found if f.what == kind] for kind in sorted({f.what for f in found})}


def test_doctor_finds_each_that_is_missing(logged: LoggedDatabase) -> None:
    assert diagnose(logged) == {}
    logged.execute(*(allow_statement(check.name) for check in ROW_CHECKS))
    found = diagnose(logged)
    assert set(found) == {"log-constraint-missing"}
    assert {f.where for f in found["log-constraint-missing"]} == {
        f"oplog.{check.table} constraint {check.name}" for check in ROW_CHECKS
    }
    assert {f.severity for f in found["log-constraint-missing"]} == {"problem"}
    with logged.engine.connect() as connection:
        assert len(list_guard_problems(connection, "oplog")) == len(ROW_CHECKS)
    upgrade(logged.engine)
    assert diagnose(logged) == {}


@pytest.mark.parametrize(
    "definition", ["CHECK (octet_length(record_hash) < 99)", "CHECK (true) NOT VALID"]
)
def test_one_that_was_altered_is_put_right(logged: LoggedDatabase, definition: str) -> None:
    logged.execute(
        allow_statement("oplog_record_hash"),
        f"ALTER TABLE oplog.oplog_record ADD CONSTRAINT oplog_record_hash {definition}",
    )
    (finding,) = diagnose(logged)["log-constraint-altered"]
    assert finding.where == "oplog.oplog_record constraint oplog_record_hash"
    for _ in range(2):
        upgrade(logged.engine)
        assert diagnose(logged) == {}


def test_an_older_row_that_breaks_one_stops_no_upgrade(logged: LoggedDatabase) -> None:
    """New rows are refused. The old one is named until it is right, and then checked."""
    logged.execute(
        allow_statement("oplog_key_form"),
        "INSERT INTO oplog.oplog_key (key_id, check_value) VALUES ('old', '')",
    )
    for _ in range(2):
        upgrade(logged.engine)
        (finding,) = diagnose(logged)["log-constraint-unchecked"]
        assert (finding.severity, "oplog maintain" in finding.hint) == ("notice", True)
    with pytest.raises(IntegrityError, match="oplog_key_form"):
        logged.execute("INSERT INTO oplog.oplog_key (key_id, check_value) VALUES ('new', '')")
    report = logged.log.maintain(logged.engine)
    assert (report.checked, report.broken) == ((), ("oplog_key_form",))
    assert "log-constraint-unchecked" in diagnose(logged)
    logged.execute(
        "ALTER TABLE oplog.oplog_key DISABLE TRIGGER ALL",
        "UPDATE oplog.oplog_key SET check_value = sha256('') WHERE key_id = 'old'",
        *(
            f"ALTER TABLE oplog.oplog_key ENABLE ALWAYS TRIGGER oplog_append_only{suffix}"
            for suffix in ("", "_rewrap")
        ),
    )
    report = logged.log.maintain(logged.engine)
    assert (report.checked, report.broken) == (("oplog_key_form",), ())
    assert report.to_json()["checked"] == ["oplog_key_form"]
    assert diagnose(logged) == {}


def test_rows_of_a_large_table_are_checked_later(
    logged: LoggedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upgrade locks it for a moment only; what is made meanwhile has the constraints."""
    logged.execute(*(allow_statement(check.name) for check in ROW_CHECKS))
    monkeypatch.setattr(row_checks, "VALIDATED_AT_ONCE", -1)
    upgrade(logged.engine)
    found = diagnose(logged)
    assert set(found) == {"log-constraint-unchecked"}
    assert len(found["log-constraint-unchecked"]) == len(ROW_CHECKS)
    logged.execute(f"SELECT oplog.oplog_make_partitions({9 << 22})")
    with pytest.raises(IntegrityError, match="oplog_record_hash"), logged.engine.begin() as one:
        insert(one, "oplog_record", position=str(9 << 22), record_hash="''")
    assert set(logged.log.maintain(logged.engine).checked) == {check.name for check in ROW_CHECKS}
    assert diagnose(logged) == {}
    with logged.engine.connect() as connection:
        assert find_check_faults(list_row_checks(connection, "oplog")) == []
    assert logged.log.maintain(logged.engine).checked == ()
