"""What must hold of an archive, whatever happened to those who published.

Judges by the objects themselves: heads in a row, each on the one before it, everything that the
newest one refers to present and unaltered, and the records those of the database, once each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog, check_links
from oplog.archive.format.head import Head, decode_head
from oplog.archive.format.path import INDEX, LOG, parse_head
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.crypto.aggregate_chain import ChainCheck
from oplog.store import EntryFilter, Store, StoredRecord
from tests.concurrency.workload import Base, Customer, make_log
from tests.databases import FreshDatabase
from tests.logged import LoggedDatabase

MOST = 1 << 26


def open_workload(database: FreshDatabase, **options: Any) -> LoggedDatabase:
    """Customers and invoices that are logged, without a pool: sessions may be killed."""
    database.fill(open_workload, Base.metadata.create_all)
    engine = sa.create_engine(database.url, poolclass=NullPool)
    log = make_log(**options)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return LoggedDatabase(engine, log, sessions)


def add_customers(logged: LoggedDatabase, first: int, last: int) -> None:
    """One transaction for each."""
    for number in range(first, last + 1):
        with logged.sessions.begin() as session:
            session.add(Customer(id=number, name=f"customer {number}"))


def open_fresh(store: ObjectStore, *, single_writer: bool = False) -> Archive:
    """The archive as a process sees it that has seen nothing before."""
    # Some of these stores are buckets, where an archive begins unsigned only if that is said.
    trust = HeadTrust(unsigned=True)
    return Archive(store, verdict=Verdict.ATOMIC, single_writer=single_writer, trust=trust)


def copy_objects(store: ObjectStore) -> dict[str, bytes]:
    """All objects, in the order in which they were first written."""
    found = {info.path: store.get(info.path, most=MOST) for info in store.list("")}
    return {path: data for path, data in found.items() if data is not None}


def choose_log(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those that depend on nothing but the log: its segments and the nodes of the index."""
    return {p: data for p, data in objects.items() if p.startswith((f"{LOG}/", f"{INDEX}/"))}


def fill_store(objects: Mapping[str, bytes]) -> MemoryStore:
    """A store in memory that has these."""
    store = MemoryStore("test")
    for path, data in objects.items():
        store.put(path, data)
    return store


def list_reachable(archive: Archive, head: Head) -> dict[str, bytes]:
    """Segments and nodes that `head` leads to, each of them what its name and its item say."""
    found: dict[str, bytes] = {}
    waiting = [(item, level) for level, row in enumerate(head.levels) for item in row]
    while waiting:
        item, level = waiting.pop()
        found[item.path] = archive.read_content(item.path)
        if level:
            waiting += [(child, level - 1) for child in archive.read_node(item, level)]
        else:
            archive.read_segment(item)
    archive.read_types(head)
    return found


def read_log(archive: Archive, head: Head) -> list[StoredRecord]:
    """All records in the order of their sequence."""
    records: list[StoredRecord] = []
    for page in ArchivedLog(archive, head).iterate_sequence():
        assert page.first == len(records) + 1
        records += page.records
    assert len(records) == head.sequence
    check_links(records, ChainCheck())
    return records


def check_heads(store: ObjectStore, *, contiguous: bool = True) -> Head | None:
    """The newest head, after a look at all before it: each is built on the one before.

    Unless they are `contiguous`, as one worker's at a time are, other heads may be there too.
    """
    newest = open_fresh(store, single_writer=not contiguous).find_head()
    listed = {parse_head(info.path) for info in store.list("HEAD/")}
    seen: list[int] = []
    head = newest
    while head is not None:
        seen.append(head.number)
        before = read_head_at(store, head.previous.number) if head.previous else None
        if before is not None:
            assert head.previous == before.link()
            assert head.epoch >= before.epoch
            grown = (head.generation, head.sequence)
            assert grown >= (before.generation, before.sequence)
        head = before
    assert set(seen) <= listed
    if contiguous:
        assert listed == set(range(1, len(seen) + 1))
        assert seen == sorted(seen, reverse=True)
    return newest


def read_head_at(store: ObjectStore, number: int) -> Head:
    """One head, whatever came after it."""
    path = f"HEAD/{number:016x}"
    data = store.get(path, most=MOST)
    assert data is not None
    return decode_head(data, what=path)


def check_whole(store: ObjectStore, *, contiguous: bool = True) -> list[StoredRecord]:
    """Everything that a reader would find now is there; its records."""
    head = check_heads(store, contiguous=contiguous)
    if head is None:
        return []
    archive = open_fresh(store, single_writer=not contiguous)
    list_reachable(archive, head)
    return read_log(archive, head)


def read_database(engine: Engine, *, schema: str = "oplog") -> list[StoredRecord]:
    """All records by position."""
    store = Store(schema)
    with engine.connect() as connection:
        snapshot = store.read_snapshot(connection)
        pages = store.iterate(connection, EntryFilter(), snapshot=snapshot)
        return sorted(record for page in pages for record in page)


def check_archive(
    store: ObjectStore, engine: Engine, *, contiguous: bool = True, **changed: Any
) -> Head:
    """The archive has what the database has: every record, once."""
    head = check_heads(store, contiguous=contiguous)
    assert head is not None
    archive = open_fresh(store, single_writer=not contiguous)
    list_reachable(archive, head)
    archived, stored = sorted(read_log(archive, head)), read_database(engine)
    assert [record._replace(**changed) for record in archived] == [
        record._replace(**changed) for record in stored
    ]
    return head
