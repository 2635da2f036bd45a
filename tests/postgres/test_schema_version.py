"""Tables that are missing, older or newer are refused, with the exact line that helps."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from oplog.errors import SchemaVersionError
from oplog.store import Store
from tests.postgres.log_schema import ODD, Application

pytestmark = pytest.mark.postgres


@pytest.fixture
def application(tmp_path: Path, bare_database_url: URL) -> Application:
    return Application(tmp_path, bare_database_url)


def set_comment(connection: Connection, comment: str) -> None:
    connection.exec_driver_sql(f"COMMENT ON TABLE oplog.oplog_record IS '{comment}'")


@pytest.mark.parametrize("schema", ["oplog", "audit", ODD])
def test_missing_tables_are_refused_with_the_line_that_helps(
    application: Application, schema: str
) -> None:
    engine = sa.create_engine(application.url, poolclass=sa.NullPool)
    store = Store(schema)
    with engine.connect() as connection, pytest.raises(SchemaVersionError) as caught:
        store.require_current(connection)
    assert caught.value.exit_code == 10
    line = caught.value.hint.removeprefix("add this line to a migration: ")
    assert line.startswith("op.create_oplog(version=1")
    application.write(upgrade=line).upgrade()
    with engine.connect() as connection:
        store.require_current(connection)


def test_older_tables_are_refused_with_the_line_that_helps(engine: Engine) -> None:
    with engine.connect() as connection:
        set_comment(connection, "oplog schema version 0")
        with pytest.raises(SchemaVersionError, match="version 0, this library needs 1") as caught:
            Store("oplog").require_current(connection)
    assert "op.upgrade_oplog(version=1)" in caught.value.hint


def test_newer_tables_are_refused(engine: Engine) -> None:
    with engine.connect() as connection:
        set_comment(connection, "oplog schema version 99")
        with pytest.raises(SchemaVersionError, match="version 99, this library knows 1") as caught:
            Store("oplog").require_current(connection)
    assert "upgrade the oplog package" in caught.value.hint


@pytest.mark.parametrize("comment", ["", "somebody's notes", "oplog schema version one"])
def test_tables_that_do_not_say_their_version_are_refused(engine: Engine, comment: str) -> None:
    with engine.connect() as connection:
        set_comment(connection, comment.replace("'", "''"))
        with pytest.raises(SchemaVersionError):
            Store("oplog").require_current(connection)
