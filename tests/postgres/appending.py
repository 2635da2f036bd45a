"""Records that a test appends by the store alone, without sessions, keys and types."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.crypto.hashing import ZERO_HASH, hash_body, hash_record
from oplog.postgres.exchange import execute
from oplog.store import EntryFilter, NewRecord, Store, StoredRecord
from oplog.store.rows import Part

STORE = Store("oplog")
FORMAT = 2


def make_record(
    names: Sequence[str],
    *,
    expected: Sequence[int | None] | int | None = None,
    parts: Sequence[Part] | None = None,
    **more: Any,
) -> NewRecord:
    """A record of these aggregates; `expected` is that of each, or of all of them."""
    record_id = more.pop("record_id", None) or uuid4()
    parts = parts or [Part(0, record_id.bytes)]
    filled = {"format": FORMAT, "key_id": "", "metadata": (), "idempotency_key": None, **more}
    each = expected if isinstance(expected, Sequence) else [expected] * len(names)
    return NewRecord(record_id, names, each, parts, **filled)


def append(
    connection: Connection, record: NewRecord, *, store: Store = STORE, tally: int | None = None
) -> dict[str, int]:
    """Append it; the versions that the function tells, by aggregate."""
    row = execute(connection, store.bind_append(record, tally=tally))
    versions, record_hash = Store.read_append(row)
    assert len(record_hash) == len(ZERO_HASH)
    told = versions or [1] * len(record.aggregates)
    return dict(zip(record.aggregates, told, strict=True))


def append_apart(
    engine: Engine, names: Sequence[str], *, isolation: str = "READ COMMITTED", **more: Any
) -> dict[str, int]:
    """Append a record of `make_record` in a transaction of its own."""
    with engine.connect().execution_options(isolation_level=isolation) as connection:
        told = append(connection, make_record(names, **more))
        connection.commit()
        return told


def append_names(connection: Connection, *transactions: str, **more: Any) -> None:
    """Append and commit a record for each text: of aggregates of one letter each."""
    for names in transactions:
        append(connection, make_record(sorted(names), **more))
        connection.commit()


def read_all(connection: Connection) -> list[StoredRecord]:
    """All records that are visible."""
    snapshot = STORE.read_snapshot(connection)
    pages = STORE.iterate(connection, EntryFilter(), snapshot=snapshot)
    return [record for page in pages for record in page]


def assert_whole(connection: Connection) -> list[StoredRecord]:
    """All records, in one piece: each aggregate's versions are without a gap and in causal order.

    Each hash is the one that the library computes. What is looked up by agrees with the records.
    """
    records = read_all(connection)
    heads: dict[str, tuple[int, bytes]] = {}
    for record in records:
        assert record.record_hash == compute_hash(record)
        for link in record.list_links():
            version, head = heads.get(link.aggregate, (0, ZERO_HASH))
            assert (link.version, link.prev_hash) == (version + 1, head), link
            heads[link.aggregate] = (link.version, link.record_hash)
    assert STORE.list_broken_links(connection) == []
    assert STORE.read_tickets(connection, list(heads)) == {
        name: version for name, (version, _) in heads.items()
    }
    entries = connection.exec_driver_sql(
        "SELECT aggregate_name, version, position FROM oplog.oplog_entry"
    )
    assert {tuple(row) for row in entries} == {
        (link.aggregate, link.version, link.position)
        for record in records
        for link in record.list_links()
    }
    outcomes = connection.exec_driver_sql(
        "SELECT record_id, position, idempotency_key FROM oplog.oplog_outcome "
        "WHERE position IS NOT NULL"
    )
    assert {tuple(row) for row in outcomes} == {
        (record.record_id, record.position, record.idempotency_key) for record in records
    }
    return records


def compute_hash(record: StoredRecord) -> bytes:
    """The hash that a record should have."""
    return hash_record(
        body_hash=hash_body(
            format=record.format,
            record_id=record.record_id,
            key_id=record.key_id,
            metadata=record.metadata,
            idempotency_key=record.idempotency_key,
            aggregates=record.aggregates,
            parts=record.parts,
        ),
        position=record.position,
        recorded_at=record.recorded_at,
        versions=record.versions,
        prev_hashes=record.prev_hashes,
    )


ARGUMENTS: dict[str, str] = {
    "p_record": "gen_random_uuid()",
    "p_aggregates": "ARRAY['a', 'b']",
    "p_expected": "NULL::bigint[]",
    "p_data": "'data'::bytea",
    "p_firsts": "NULL::integer[]",
    "p_more": "NULL::bytea[]",
    "p_format": "2::smallint",
    "p_key_id": "''",
    "p_metadata": "NULL::text[]",
    "p_idempotency_key": "NULL",
    "p_epoch": "NULL",
    "p_relations": "NULL::oid[]",
    "p_labels": "NULL::oid[]",
    "p_form": "NULL",
    "p_tally": "NULL",
    "p_asynchronous": "true",
}


def state_append(**changed: str) -> str:
    """A call of the append function as SQL; `changed` are arguments, as expressions."""
    arguments = ", ".join(f"{name} => {value}" for name, value in {**ARGUMENTS, **changed}.items())
    return f"SELECT oplog.oplog_append({arguments})"


def name_many(count: int) -> list[str]:
    """So many names, in the order of collation C, of which none begins with another."""
    return sorted(hashlib.md5(bytes([n % 256, n // 256])).hexdigest()[:8] for n in range(count))


def sqlstate(error: pytest.ExceptionInfo[DBAPIError] | DBAPIError) -> str | None:
    """The SQLSTATE of a driver's error."""
    caught = error if isinstance(error, DBAPIError) else error.value
    return getattr(caught.orig, "sqlstate", None)
