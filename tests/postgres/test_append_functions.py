"""The functions that redeem tickets and write entries, called as the store calls them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.crypto.hashing import ZERO_HASH, hash_entry
from oplog.postgres.binary_message import read_array, read_numbers
from oplog.postgres.exchange import execute
from oplog.store import NewEntry, Store
from oplog.store.rows import EntryFilter, StoredEntry
from tests.concurrency.workload import waiting_for_lock

pytestmark = pytest.mark.postgres

STORE = Store("oplog")
ONE, TWO = ["a"], ["a", "b"]
# In "C" order; another collation sorts "a" before "B".
MANY = ["B", "a", "a/é", "c"]


def make_entry(aggregate: str, expected: int | None = None) -> NewEntry:
    entry_id = uuid4()
    return NewEntry(aggregate, expected, entry_id, entry_id.bytes * 2, entry_id.bytes)


def append(
    connection: Connection,
    entries: Sequence[NewEntry],
    *,
    store: Store = STORE,
    metadata: Sequence[tuple[str, str]] = (),
    **more: Any,
) -> list[tuple[int, bytes]]:
    """Versions and hashes, as the function tells them."""
    message = store.bind_append(
        entries, format=2, key_id="k", metadata=metadata, metadata_hash=b"m" * 32, **more
    )
    versions, hashes = execute(connection, message)
    return list(zip(read_numbers(versions), read_array(hashes), strict=True))


def read(connection: Connection) -> list[StoredEntry]:
    snapshot = STORE.read_snapshot(connection)
    return STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)


def sqlstate(error: pytest.ExceptionInfo[DBAPIError]) -> str | None:
    return getattr(error.value.orig, "sqlstate", None)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@pytest.mark.parametrize("names", [ONE, MANY])
def test_entries_are_chained_as_the_library_computes_it(
    connection: Connection, names: list[str]
) -> None:
    given = [[make_entry(name) for name in names] for _ in range(3)]
    told = [append(connection, entries) for entries in given]
    connection.commit()
    found = {(e.aggregate, e.version): e for e in read(connection)}
    heads = dict.fromkeys(names, ZERO_HASH)
    for version, (entries, answers) in enumerate(zip(given, told, strict=True), 1):
        for entry, answer in zip(entries, answers, strict=True):
            stored = found.pop((entry.aggregate, version))
            head = hash_entry(
                prev_hash=heads[entry.aggregate],
                version=version,
                recorded_at=stored.recorded_at,
                body_hash=entry.body_hash,
            )
            assert answer == (version, head)
            assert (stored.prev_hash, stored.entry_hash) == (heads[entry.aggregate], head)
            assert (stored.entry_id, stored.data) == (entry.entry_id, entry.data)
            assert (stored.format, stored.key_id) == (2, "k")
            assert stored.metadata_hash == b"m" * 32
            heads[entry.aggregate] = head
    assert found == {}
    rows = connection.exec_driver_sql("SELECT * FROM oplog.oplog_ticket").all()
    assert {row.aggregate_name: (row.version, row.head_hash) for row in rows} == {
        name: (3, head) for name, head in heads.items()
    }
    bodies = {entry.aggregate: entry.body_hash for entry in given[-1]}
    assert {row.aggregate_name: row.body_hash for row in rows} == bodies
    assert STORE.list_broken_links(connection) == []


@pytest.mark.parametrize("names", [ONE, MANY])
def test_a_transaction_is_one_whole(connection: Connection, names: list[str]) -> None:
    metadata = [("actor", "ada"), ("actor", "bob"), ("why", "")]
    append(connection, [make_entry("z")])
    entries = [make_entry(name) for name in names]
    append(connection, entries, metadata=metadata, idempotency_key="key")
    connection.commit()
    _, *stored = read(connection)
    assert [e.aggregate for e in stored] == names
    assert [e.position for e in stored] == sorted(e.position for e in stored)
    assert {e.transaction_position for e in stored} == {stored[0].position}
    assert {e.transaction_size for e in stored} == {len(names)}
    assert [e.idempotency_key for e in stored] == ["key", *[None] * (len(names) - 1)]
    positions = [e.position for e in read(connection)]
    assert STORE.read_metadata(connection, positions) == {stored[0].position: metadata}


@pytest.mark.parametrize("names", [ONE, TWO])
@pytest.mark.parametrize("form", [0, 4, 5, -1])
def test_only_formats_that_readers_read(
    connection: Connection, names: list[str], form: int
) -> None:
    """Of format 4 is what pruning leaves: readers would pass it over in silence."""
    message = STORE.bind_append(
        [make_entry(name) for name in names],
        format=form,
        key_id="k",
        metadata=[],
        metadata_hash=b"m" * 32,
    )
    with pytest.raises(DBAPIError, match=f"format {form} cannot be appended") as refused:
        execute(connection, message)
    assert sqlstate(refused) == "22023"


@pytest.mark.parametrize("names", [ONE, TWO])
def test_the_version_a_ticket_was_taken_at_is_expected(
    connection: Connection, names: list[str]
) -> None:
    for version in range(3):
        append(connection, [make_entry(name, version) for name in names])
        connection.commit()
    for stale in (0, 2, 4):
        for place in range(len(names)):
            entries = [make_entry(name, 3) for name in names]
            entries[place] = make_entry(names[place], stale)
            with pytest.raises(DBAPIError, match=f"at version {stale}, it is now at") as caught:
                append(connection, entries)
            assert sqlstate(caught) == "OP001"
            connection.rollback()
    assert [answer[0] for answer in append(connection, [make_entry(n, 3) for n in names])] == [
        4 for _ in names
    ]


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], ["a", "B"], ["a", "c", "b"]])
def test_aggregates_out_of_order_are_refused(connection: Connection, names: list[str]) -> None:
    with pytest.raises(DBAPIError) as caught:
        append(connection, [make_entry(name) for name in names])
    # Postgres itself refuses to touch a ticket twice in one statement.
    assert sqlstate(caught) in {"22023", "21000"}


def test_an_aggregate_given_twice_is_refused_also_when_it_is_new(connection: Connection) -> None:
    with pytest.raises(DBAPIError):
        append(connection, [make_entry("a"), make_entry("a")])


@pytest.mark.parametrize("names", [ONE, TWO])
def test_an_entry_that_was_fenced_off_is_refused(connection: Connection, names: list[str]) -> None:
    for place in range(len(names)):
        entries = [make_entry(name) for name in names]
        fence(connection, entries[place].entry_id, names[place])
        with pytest.raises(DBAPIError) as caught:
            append(connection, entries)
        assert sqlstate(caught) == "OP006"
        connection.rollback()
    append(connection, [make_entry(name) for name in names])
    connection.commit()
    assert len(read(connection)) == len(names)


def fence(connection: Connection, entry_id: UUID, aggregate: str) -> None:
    connection.exec_driver_sql(
        "INSERT INTO oplog.oplog_fence (entry_id, aggregate_name) VALUES (%s, %s)",
        (entry_id, aggregate),
    )
    connection.commit()


@pytest.mark.parametrize("names", [ONE, TWO])
def test_a_transaction_must_wait_for_its_durability(
    connection: Connection, names: list[str]
) -> None:
    connection.exec_driver_sql("SET synchronous_commit = off")
    connection.commit()
    with pytest.raises(DBAPIError) as caught:
        append(connection, [make_entry(name) for name in names])
    assert sqlstate(caught) == "OP005"
    connection.rollback()
    willing = Store("oplog", asynchronous_commit=True)
    append(connection, [make_entry(name) for name in names], store=willing)


@pytest.mark.parametrize("names", [ONE, TWO])
def test_what_the_guards_counted_is_settled(connection: Connection, names: list[str]) -> None:
    with pytest.raises(DBAPIError) as caught:
        append(connection, [make_entry(name) for name in names], tally=12)
    assert sqlstate(caught) == "OP003"


@pytest.mark.parametrize("names", [ONE, TWO])
def test_an_id_is_drawn_when_the_tickets_are_held(engine: Engine, names: list[str]) -> None:
    """Who waited for a ticket comes after whoever wrote meanwhile."""
    with engine.begin() as connection:
        append(connection, [make_entry(names[-1])])
    with ThreadPoolExecutor(1) as pool, engine.connect() as holder:
        holder.exec_driver_sql("SELECT FROM oplog.oplog_ticket FOR UPDATE")
        with waiting_for_lock(engine):
            waiter = pool.submit(_append_apart, engine, names)
        with engine.begin() as connection:
            append(connection, [make_entry("meanwhile")])
        holder.rollback()
        waiter.result()
    with engine.connect() as connection:
        assert [e.aggregate for e in read(connection)] == [names[-1], "meanwhile", *names]


def _append_apart(engine: Engine, names: list[str]) -> None:
    with engine.begin() as connection:
        append(connection, [make_entry(name) for name in names])


def test_tickets_are_redeemed_in_the_order_of_their_names(engine: Engine) -> None:
    """Whoever waits for the first holds no later one, or two of them would deadlock."""
    with engine.begin() as connection:
        append(connection, [make_entry(name) for name in TWO])
    with ThreadPoolExecutor(1) as pool, engine.connect() as holder:
        first = sa.text("SELECT FROM oplog.oplog_ticket WHERE aggregate_name = 'a' FOR UPDATE")
        second = sa.text(
            "SELECT FROM oplog.oplog_ticket WHERE aggregate_name = 'b' FOR UPDATE NOWAIT"
        )
        holder.execute(first)
        with waiting_for_lock(engine):
            waiter = pool.submit(_append_apart, engine, TWO)
        holder.execute(second)
        holder.rollback()
        waiter.result()
