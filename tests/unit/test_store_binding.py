"""Statements and parameters of an append, as the database will read them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest
from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.store import NewEntry, Store
from oplog.store.entries import write_array

pytestmark = pytest.mark.unit

ENTRY = NewEntry("a", None, UUID(int=1), b"\x01body", b"\x02data")
OTHER = NewEntry('b"\\,{}', 4, UUID(int=2), b"", b"\xff")


def test_one_entry_goes_as_it_is() -> None:
    statement, parameters = Store("log").bind_append(
        [ENTRY], format=2, key_id="k", metadata=[], metadata_hash=b"m"
    )
    assert '"log".oplog_append_one(' in statement
    assert parameters == (*ENTRY, 2, "k", b"m", None, None, None, None, False)
    assert statement.count("%") == len(parameters)


def test_many_go_as_arrays() -> None:
    statement, parameters = Store("log", asynchronous_commit=True).bind_append(
        [ENTRY, OTHER],
        format=2,
        key_id="k",
        metadata=[("actor", "ada"), ("actor", "bob")],
        metadata_hash=b"m",
        idempotency_key="key",
        tally=7,
    )
    assert '"log".oplog_append(' in statement
    assert parameters == (
        '{"a","b\\"\\\\,{}"}',
        "{NULL,4}",
        f"{{{UUID(int=1).hex},{UUID(int=2).hex}}}",
        '{"\\\\x01626f6479","\\\\x"}',
        '{"\\\\x0264617461","\\\\xff"}',
        2,
        "k",
        b"m",
        ["actor", "actor"],
        ["ada", "bob"],
        "key",
        7,
        True,
    )
    assert statement.count("%") == len(parameters)


def test_a_transaction_that_comes_to_nothing() -> None:
    statement, parameters = Store("log").bind_settle(7)
    assert '"log".oplog_settle(%s::bigint)' in statement
    assert parameters == (7,)


def test_names_are_compared_in_the_same_statement() -> None:
    """Before the tally, which is impossible where one of them means another table."""
    named = [('"a"."b"', 7), ('"c"', 8)]
    statement, parameters = Store("log").bind_append(
        [ENTRY], format=2, key_id="k", metadata=[], metadata_hash=b"m", tally=5, named=named
    )
    assert parameters[-4:] == (['"a"."b"', '"c"'], [7, 8], 5, False)
    assert statement.count("%") == len(parameters)
    assert statement.endswith("THEN %s::bigint ELSE -1 END, %s::boolean)")
    statement, parameters = Store("log").bind_settle(5, named=named)
    assert parameters == (['"a"."b"', '"c"'], [7, 8], 5)
    assert statement.endswith("THEN %s::bigint ELSE -1 END)")


def test_a_percent_sign_in_the_schemas_name_is_no_parameter() -> None:
    store = Store("100%s")
    assert store.schema == "100%s"
    statement, parameters = store.bind_settle(7)
    assert statement % parameters == (
        'SELECT ARRAY[]::bigint[], ARRAY[]::bytea[] FROM "100%s".oplog_settle(7::bigint)'
    )


def test_another_driver_is_refused_before_anything_is_asked() -> None:
    connection = SimpleNamespace(dialect=SimpleNamespace(driver="psycopg2"))
    with pytest.raises(ConfigurationError, match="driver is psycopg2"):
        Store("log").require_current(cast("Connection", connection))


def test_an_array_literal() -> None:
    assert write_array([]) == "{}"
    assert write_array(["1", "NULL"]) == "{1,NULL}"
