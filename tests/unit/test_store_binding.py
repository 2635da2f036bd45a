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
    INT8,
    INT8_ARRAY,
    TEXT,
    TEXT_ARRAY,
    UUID_ARRAY,
    UUID_OID,
    Message,
)
from oplog.store import NewEntry, Store

pytestmark = pytest.mark.unit

ENTRY = NewEntry("a", None, UUID(int=1), b"\x01body", b"\x02data")
OTHER = NewEntry('b"\\,{}', 4, UUID(int=2), b"", b"\xff")


def list_values(message: Message) -> list[object]:
    return [parameter.value for parameter in message.parameters]


def list_oids(message: Message) -> list[int]:
    return [parameter.oid for parameter in message.parameters]


def places(first: int, last: int) -> str:
    return ", ".join(f"${number}" for number in range(first, last + 1))


def test_one_entry_goes_as_it_is() -> None:
    message = Store("log").bind_append(
        [ENTRY], format=2, key_id="k", metadata=[], metadata_hash=b"m"
    )
    assert message.statement == (
        f'SELECT ARRAY[o_version], ARRAY[o_hash] FROM "log".oplog_append_one({places(1, 13)})'
    )
    assert list_values(message) == [*ENTRY, 2, "k", b"m", None, None, None, None, False]
    assert list_oids(message) == [
        *(TEXT, INT8, UUID_OID, BYTEA, BYTEA),
        *(INT2, TEXT, BYTEA, TEXT_ARRAY, TEXT_ARRAY, TEXT, INT8, BOOL),
    ]


def test_many_go_as_arrays() -> None:
    message = Store("log", asynchronous_commit=True).bind_append(
        [ENTRY, OTHER],
        format=2,
        key_id="k",
        metadata=[("actor", "ada"), ("actor", "bob")],
        metadata_hash=b"m",
        idempotency_key="key",
        tally=7,
    )
    assert message.statement == (
        f'SELECT versions, hashes FROM "log".oplog_append({places(1, 13)})'
    )
    assert list_values(message) == [
        ("a", 'b"\\,{}'),
        (None, 4),
        (UUID(int=1), UUID(int=2)),
        (b"\x01body", b""),
        (b"\x02data", b"\xff"),
        2,
        "k",
        b"m",
        ["actor", "actor"],
        ["ada", "bob"],
        "key",
        7,
        True,
    ]
    assert list_oids(message)[:5] == [
        *(TEXT_ARRAY, INT8_ARRAY, UUID_ARRAY, BYTEA_ARRAY, BYTEA_ARRAY)
    ]


def test_a_transaction_that_comes_to_nothing() -> None:
    message = Store("log").bind_settle(7)
    assert message.statement.endswith(' FROM "log".oplog_settle($1)')
    assert message.parameters == ((INT8, 7),)


def test_names_are_compared_in_the_same_statement() -> None:
    """Before the tally, which is impossible where one of them means another table."""
    named = [('"a"."b"', 7), ('"c"', 8)]
    message = Store("log").bind_append(
        [ENTRY], format=2, key_id="k", metadata=[], metadata_hash=b"m", tally=5, named=named
    )
    assert list_values(message)[-4:] == [('"a"."b"', '"c"'), (7, 8), 5, False]
    assert list_oids(message)[-4:] == [TEXT_ARRAY, INT8_ARRAY, INT8, BOOL]
    assert "unnest($12::text[])" in message.statement
    assert message.statement.endswith("= $13::bigint[] THEN $14 ELSE -1 END, $15)")
    message = Store("log").bind_settle(5, named=named)
    assert list_values(message) == [('"a"."b"', '"c"'), (7, 8), 5]
    assert message.statement.endswith("= $2::bigint[] THEN $3 ELSE -1 END)")


def test_a_percent_sign_in_the_schemas_name_stays_one() -> None:
    store = Store("100%s")
    assert store.schema == "100%s"
    assert store.bind_settle(7).statement == (
        'SELECT ARRAY[]::bigint[], ARRAY[]::bytea[] FROM "100%s".oplog_settle($1)'
    )


def test_another_driver_is_refused_before_anything_is_asked() -> None:
    connection = SimpleNamespace(dialect=SimpleNamespace(driver="psycopg2"))
    store = Store("log")
    for require in (store.require_current, store.require_home):
        with pytest.raises(ConfigurationError, match="driver is psycopg2"):
            require(cast("Connection", connection))
