"""The state of the triggers, and keys as Postgres reads them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL, Connection, Engine

from oplog.doctor.inspection import (
    list_guard_problems,
    read_key,
    read_server_status,
)
from oplog.errors import ConfigurationError, SchemaDriftError
from oplog.schema.tables import create_statements

pytestmark = pytest.mark.postgres

ODD = 'odd "name". of\ta schema'


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


# -- triggers -----------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_fresh_log(connection: Connection) -> None:
    assert list_guard_problems(connection, "oplog") == []


def test_nothing_is_wrong_in_an_oddly_named_schema(bare_database_url: URL) -> None:
    engine = sa.create_engine(bare_database_url)
    with engine.begin() as connection:
        for statement in create_statements(ODD):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        assert list_guard_problems(connection, ODD) == []
        assert read_server_status(connection, ODD).log_bytes > 0
        assert len(list_guard_problems(connection, "elsewhere")) > 6
    engine.dispose()


def test_every_trigger_of_the_log_is_watched(connection: Connection) -> None:
    rows = connection.exec_driver_sql(
        "SELECT c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE c.relnamespace = 'oplog'::regnamespace AND NOT t.tgisinternal"
    ).all()
    assert len(rows) >= 8
    for table, trigger in rows:
        connection.exec_driver_sql(f"ALTER TABLE oplog.{table} DISABLE TRIGGER {trigger}")
        assert f"trigger {trigger} on {table} is disabled" in list_guard_problems(
            connection, "oplog"
        )
    assert len(list_guard_problems(connection, "oplog")) == len(rows)


def test_every_function_of_the_log_is_watched(connection: Connection) -> None:
    names = connection.exec_driver_sql(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'oplog'::regnamespace"
    ).scalars()
    for name in names.all():
        connection.exec_driver_sql(f"ALTER FUNCTION oplog.{name} RENAME TO {name}_2")
        problem = f"function {name} is not the one that the log was created with"
        assert problem in list_guard_problems(connection, "oplog")


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            "ALTER TABLE oplog.oplog_entry ENABLE TRIGGER oplog_append_only",
            "trigger oplog_append_only on oplog_entry is not ENABLE ALWAYS",
        ),
        (
            "ALTER TABLE oplog.oplog_type ENABLE REPLICA TRIGGER oplog_append_only",
            "trigger oplog_append_only on oplog_type is not ENABLE ALWAYS",
        ),
        (
            "DROP TRIGGER oplog_append_only_step ON oplog.oplog_ticket",
            "trigger oplog_append_only_step on oplog_ticket is missing",
        ),
        (
            (
                "CREATE OR REPLACE TRIGGER oplog_append_only BEFORE UPDATE ON oplog.oplog_log "
                "FOR EACH STATEMENT EXECUTE FUNCTION oplog.oplog_refuse_change(); "
                "ALTER TABLE oplog.oplog_log ENABLE ALWAYS TRIGGER oplog_append_only"
            ),
            "trigger oplog_append_only on oplog_log does not fire on what it should",
        ),
        (
            (
                "CREATE FUNCTION oplog.shrug() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN RETURN NULL; END'; "
                "CREATE OR REPLACE TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE "
                "ON oplog.oplog_log FOR EACH STATEMENT EXECUTE FUNCTION oplog.shrug(); "
                "ALTER TABLE oplog.oplog_log ENABLE ALWAYS TRIGGER oplog_append_only"
            ),
            "trigger oplog_append_only on oplog_log calls shrug",
        ),
        (
            (
                "CREATE OR REPLACE FUNCTION oplog.oplog_refuse_change() RETURNS trigger "
                "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            ),
            "function oplog_refuse_change is not the one that the log was created with",
        ),
    ],
)
def test_a_weakened_guard_is_found(connection: Connection, statement: str, problem: str) -> None:
    connection.exec_driver_sql(statement)
    assert list_guard_problems(connection, "oplog") == [problem]


# -- keys ---------------------------------------------------------------------------------------

TABLE = sa.Table(
    "thing",
    sa.MetaData(),
    sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("code", sa.String(4), primary_key=True),
    sa.Column("price", sa.Numeric(6, 2), primary_key=True),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("raw", postgresql.BYTEA, primary_key=True),
    sa.Column("flag", sa.Boolean, primary_key=True),
    sa.Column("kind", sa.Enum("big", "small", name="size"), primary_key=True),
)
TEXTS = {
    "n": "+042",
    "code": "a=' ",
    "price": "1.5",
    "id": "{A0EEBC99-9C0B4EF8-BB6D6BB9-BD380A11}",
    "at": "2025-01-31 12:00:00 Europe/Paris",
    "raw": "a\\001",
    "flag": "yes",
    "kind": "big",
}


@pytest.fixture
def thing(connection: Connection) -> sa.Table:
    TABLE.metadata.create_all(connection)
    return TABLE


def test_any_spelling_of_a_key_is_the_key(connection: Connection, thing: sa.Table) -> None:
    connection.exec_driver_sql("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'")
    key = read_key(connection, thing, texts=TEXTS)
    assert key == {
        "n": 42,
        "code": "a=' ",
        "price": Decimal("1.50"),
        "id": UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        "at": dt.datetime(2025, 1, 31, 11, tzinfo=dt.UTC),
        "raw": b"a\x01",
        "flag": True,
        "kind": "big",
    }
    assert str(key["price"]) == "1.50"


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("n", "one"),
        ("n", "9999999999"),
        ("n", ""),
        ("code", "abcde"),
        ("code", "a\udcff"),
        ("price", "99999"),
        ("id", "1"),
        ("at", "never"),
        ("raw", "\\x0"),
        ("flag", "perhaps"),
        ("kind", "huge'); DROP TABLE thing; --"),
    ],
)
def test_text_that_is_no_key(
    connection: Connection, thing: sa.Table, column: str, text: str
) -> None:
    with pytest.raises(ConfigurationError, match="not a key of table thing") as caught:
        read_key(connection, thing, texts={**TEXTS, column: text})
    assert "code character varying(4)" in caught.value.hint


def test_key_of_a_table_that_is_gone(connection: Connection) -> None:
    with pytest.raises(SchemaDriftError):
        read_key(connection, TABLE, texts=TEXTS)
