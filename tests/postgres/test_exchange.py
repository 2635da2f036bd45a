"""Messages on a connection's own libpq: what the server reads, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from oplog.errors import ConfigurationError
from oplog.postgres.binary_message import (
    BOOL,
    BYTEA,
    BYTEA_ARRAY,
    INT2,
    INT4_ARRAY,
    INT8,
    INT8_ARRAY,
    TEXT,
    TEXT_ARRAY,
    UUID_OID,
    Message,
    Parameter,
    read_array,
    read_fields,
)
from oplog.postgres.exchange import exchange, execute

pytestmark = pytest.mark.postgres

TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
VALUES = {
    (BOOL, "boolean"): st.booleans(),
    (BYTEA, "bytea"): st.binary(),
    (INT2, "smallint"): st.integers(-(2**15), 2**15 - 1),
    (INT8, "bigint"): st.integers(-(2**63), 2**63 - 1),
    (TEXT, "text"): TEXTS,
    (UUID_OID, "uuid"): st.uuids(),
    (BYTEA_ARRAY, "bytea[]"): st.lists(st.binary() | st.none()),
    (INT8_ARRAY, "bigint[]"): st.lists(st.integers(-(2**63), 2**63 - 1) | st.none()),
    (TEXT_ARRAY, "text[]"): st.lists(TEXTS | st.none()),
    (INT4_ARRAY, "integer[]"): st.lists(st.integers(-(2**31), 2**31 - 1) | st.none()),
}


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def as_driver_reads(value: Any) -> Any:
    if isinstance(value, list):
        return [as_driver_reads(item) for item in value]
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.mark.parametrize(("oid", "name"), VALUES, ids=[name for _, name in VALUES])
def test_the_server_reads_what_was_meant(connection: Connection, oid: int, name: str) -> None:
    connection.exec_driver_sql(f"CREATE TEMP TABLE kept (value {name})")

    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(VALUES[oid, name] | st.none())
    def check(value: Any) -> None:
        execute(
            connection,
            Message("INSERT INTO kept VALUES ($1) RETURNING 1::bigint", (Parameter(oid, value),)),
        )
        found = connection.exec_driver_sql("DELETE FROM kept RETURNING value").scalar_one()
        assert as_driver_reads(found) == value

    check()


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1", "SQL_ASCII"])
def test_text_arrives_in_any_client_encoding(connection: Connection, encoding: str) -> None:
    connection.exec_driver_sql(f"SET client_encoding = '{encoding}'")
    row = execute(
        connection,
        Message(
            "SELECT convert_to($1, 'UTF8'), convert_to($2[1], 'UTF8'), convert_to('é', 'UTF8')",
            (Parameter(TEXT, "é"), Parameter(TEXT_ARRAY, ["é"])),
        ),
    )
    assert row == ["é".encode()] * 3


def test_a_transaction_begins_as_the_driver_begins_it(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        connection.begin()
        row = execute(connection, Message("SELECT current_setting('transaction_isolation')"))
        assert row == [b"serializable"]
        connection.exec_driver_sql("CREATE TABLE given_up (id integer)")
        connection.rollback()
        assert not sa.inspect(connection).has_table("given_up")


def test_commit_travels_with_it(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE kept (id integer)")
        answer = exchange(connection, Message("SELECT 1::bigint"), commit=True)
        assert (answer.error, answer.sent, len(answer.row or ())) == (None, True, 1)
        raw: Any = connection.connection.driver_connection
        assert raw.info.transaction_status.name == "IDLE"
        connection.rollback()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM kept").scalar() == 0


def test_commit_is_skipped_behind_an_error(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE given_up (id integer)")
        answer = exchange(connection, Message("SELECT 1 / 0"), commit=True)
        assert getattr(answer.error, "sqlstate", None) == "22012"
        assert answer.row is None
        connection.rollback()
        assert not sa.inspect(connection).has_table("given_up")


def test_an_error_of_commit_comes_after_the_row(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE TEMP TABLE late (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.exec_driver_sql("INSERT INTO late VALUES (1), (1)")
        answer = exchange(connection, Message("SELECT 'x'::text"), commit=True)
        assert getattr(answer.error, "sqlstate", None) == "23505"
        assert answer.row == [b"x"]


def test_errors_are_sqlalchemys(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TEMP TABLE one (id integer PRIMARY KEY)")
    insert = Message("INSERT INTO one VALUES (1) RETURNING id")
    execute(connection, insert)
    with pytest.raises(IntegrityError) as refused:
        execute(connection, insert)
    assert refused.value.statement == insert.statement
    connection.rollback()
    with pytest.raises(DBAPIError, match="no row"):
        execute(connection, Message("SELECT 1 WHERE false"))
    assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_a_connection_that_breaks_off_says_why(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        answer = exchange(
            connection,
            Message("SELECT pg_terminate_backend(pg_backend_pid())::text, pg_sleep(9)::text"),
            commit=True,
        )
        assert getattr(answer.error, "sqlstate", None) == "57P01"
        assert (answer.row, answer.sent) == (None, True)
        connection.invalidate()


def test_in_pipeline_mode_it_is_refused(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT 1")
    raw: Any = connection.connection.driver_connection
    with raw.pipeline(), pytest.raises(ConfigurationError, match="pipeline mode"):
        exchange(connection, Message("SELECT 1::bigint"))
    assert execute(connection, Message("SELECT 'x'::text")) == [b"x"]


def test_an_array_of_hashes_comes_back(connection: Connection) -> None:
    (found,) = execute(connection, Message("SELECT ARRAY['\\x00'::bytea, '\\x'::bytea]"))
    assert read_array(found) == [b"\x00", b""]
    (found,) = execute(connection, Message("SELECT ARRAY[]::bytea[]"))
    assert read_array(found) == []


def test_an_integer_in_an_array(connection: Connection) -> None:
    (found,) = execute(
        connection,
        Message("SELECT ($1::integer[])[2]::text", (Parameter(INT4_ARRAY, [None, -9]),)),
    )
    assert found.decode() == "-9"


def test_fields_of_a_composite_value(connection: Connection) -> None:
    asked = "SELECT ROW('\\x0001'::bytea, NULL::text, ''::text, 258::smallint, NULL::bytea)"
    (found,) = execute(connection, Message(asked))
    assert read_fields(found) == [b"\0\1", None, b"", b"\1\2", None]
