"""Messages of an append, as the database will read them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest
from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.postgres.binary_message import (
    BOOL,
    BYTEA,
    BYTEA_ARRAY,
    INT2,
    INT4_ARRAY,
    INT8,
    INT8_ARRAY,
    OID_ARRAY,
    TEXT,
    TEXT_ARRAY,
    UUID_OID,
    Message,
)
from oplog.store import NewRecord, Store
from oplog.store.rows import CREATED, KnownTables, Part

pytestmark = pytest.mark.unit

RECORD = NewRecord(UUID(int=1), ["a"], [4], [Part(0, b"\x02data")], 2, "k")


def list_values(message: Message) -> list[object]:
    return [parameter.value for parameter in message.parameters]


def list_oids(message: Message) -> list[int]:
    return [parameter.oid for parameter in message.parameters]


def places(first: int, last: int) -> str:
    return ", ".join(f"${number}" for number in range(first, last + 1))


def test_one_aggregate_and_one_part() -> None:
    message = Store("log").bind_append(RECORD)
    assert message.statement == f'SELECT "log".oplog_append({places(1, 16)})'
    assert list_values(message) == [
        *(UUID(int=1), ["a"], [4], b"\x02data", None, None, 2, "k"),
        *(None, None, None, None, None, None, None, False),
    ]
    assert list_oids(message) == [
        *(UUID_OID, TEXT_ARRAY, INT8_ARRAY, BYTEA, INT4_ARRAY, BYTEA_ARRAY),
        *(INT2, TEXT, TEXT_ARRAY, TEXT),
        *(INT8, OID_ARRAY, OID_ARRAY, INT8, INT8, BOOL),
    ]


def test_several_of_all() -> None:
    parts = [Part(0, b"zero"), Part(0, b""), Part(2, b"\xff")]
    record = RECORD._replace(
        aggregates=["a", 'b"\\,{}', "c"],
        expected=[None, CREATED, 0],
        parts=parts,
        metadata=[("actor", "ada"), ("actor", "bob")],
        idempotency_key="key",
        known=KnownTables(9, [3, 2], [5], -8),
    )
    message = Store("log", asynchronous_commit=True).bind_append(record, tally=7)
    # One statement, whatever the record holds.
    assert message.statement == Store("log").bind_append(RECORD).statement
    assert list_values(message) == [
        *(UUID(int=1), ["a", 'b"\\,{}', "c"], [None, -1, 0], b"zero"),
        *([0, 2], [b"", b"\xff"], 2, "k", ["actor", "ada", "actor", "bob"], "key"),
        *(9, [3, 2], [5], -8, 7, True),
    ]


@pytest.mark.parametrize(
    ("expected", "bound"),
    [
        ([CREATED, CREATED], None),
        ([CREATED, None], [CREATED, None]),
        ([None, None], [None, None]),
        ([0, CREATED], [0, CREATED]),
    ],
)
def test_nothing_is_expected_of_what_is_all_created(
    expected: list[int | None], bound: list[int | None] | None
) -> None:
    record = RECORD._replace(aggregates=["a", "b"], expected=expected)
    assert list_values(Store("log").bind_append(record))[2] == bound


def test_a_transaction_that_comes_to_nothing() -> None:
    message = Store("log").bind_settle(7)
    assert message.statement.endswith(' FROM "log".oplog_settle($1)')
    assert message.parameters == ((INT8, 7),)


def test_names_are_compared_in_the_same_statement() -> None:
    """Before the tally, which is impossible where one of them means another table."""
    named = [('"a"."b"', 7), ('"c"', 8)]
    message = Store("log").bind_append(RECORD, tally=5, named=named)
    assert list_values(message)[-4:] == [('"a"."b"', '"c"'), (7, 8), 5, False]
    assert list_oids(message)[-4:] == [TEXT_ARRAY, INT8_ARRAY, INT8, BOOL]
    assert "unnest($15::text[])" in message.statement
    assert message.statement.endswith("= $16::bigint[] THEN $17 ELSE -1 END, $18)")
    message = Store("log").bind_settle(5, named=named)
    assert list_values(message) == [('"a"."b"', '"c"'), (7, 8), 5]
    assert message.statement.endswith("= $2::bigint[] THEN $3 ELSE -1 END)")


def test_a_percent_sign_in_the_schemas_name_stays_one() -> None:
    store = Store("100%s")
    assert store.schema == "100%s"
    assert store.bind_settle(7).statement == (
        'SELECT NULL::bigint[], NULL::bytea FROM "100%s".oplog_settle($1)'
    )


def test_another_driver_is_refused_before_anything_is_asked() -> None:
    connection = SimpleNamespace(dialect=SimpleNamespace(driver="psycopg2"))
    store = Store("log")
    for require in (store.require_current, store.require_home):
        with pytest.raises(ConfigurationError, match="driver is psycopg2"):
            require(cast("Connection", connection))
