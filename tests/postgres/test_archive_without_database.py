"""An archive is read without any database, sealed or in plaintext."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from oplog import Archive, Keyring, LoggedEntry, Oplog, Retention, TypeCatalog
from oplog.errors import ConfigurationError, KeyUnavailableError, PrunedError
from tests.postgres.archived import open_memory, reopen
from tests.postgres.pruned import open_plain, prune_small, sync, write_random
from tests.postgres.replay_models import Bench, Line, Task, make_bench

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    """The models of the plaintext log."""


class Note(Base):
    """One table."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def write_and_publish(bench: Bench) -> Archive:
    """A log of some transactions, all of it in an archive."""
    archive = open_memory()
    write_random(bench, random.Random(7), 6)
    sync(bench, archive)
    return archive


def make_reader(bench: Bench) -> Oplog:
    """The log as a process has it that knows models and keys, and no database."""
    return Oplog(bench.log.catalog, keyring=bench.log.keyring)


def drop_sequences(entries: Any) -> list[LoggedEntry]:
    return [replace(entry, sequence=None) for entry in entries]


def test_entries_are_those_of_the_tables(bench: Bench) -> None:
    archive = write_and_publish(bench)
    with open_plain(bench.engine).connect() as connection:
        live = list(bench.log.read(connection))
    found = list(make_reader(bench).read(None, archive=reopen(archive)))
    places = [entry.sequence for entry in found if entry.sequence is not None]
    assert places == sorted(places)
    assert len(places) == len(live)
    assert set(places) == set(range(1, archive.read_head().sequence + 1))
    by_position = sorted(found, key=lambda entry: entry.position)
    assert repr(drop_sequences(by_position)) == repr(drop_sequences(live))


def test_filters_hold(bench: Bench) -> None:
    archive = write_and_publish(bench)
    log = make_reader(bench)
    with open_plain(bench.engine).connect() as connection:
        entries = list(bench.log.read(connection))
        middle = entries[len(entries) // 2]
        filters: list[dict[str, Any]] = [
            {"aggregate": "project/p"},
            {"metadata": {"actor": "ann"}},
            {"after": middle.position},
            {"through": middle.position},
            {"through": middle.recorded_at},
            {"through": datetime.now(UTC) - timedelta(days=1)},
        ]
        for one in filters:
            live = drop_sequences(bench.log.read(connection, **one))
            found = drop_sequences(log.read(None, archive=reopen(archive), **one))
            assert repr(sorted(found, key=lambda e: e.position)) == repr(live), one


def test_what_is_not_published_is_not_seen(bench: Bench) -> None:
    archive = write_and_publish(bench)
    with open_plain(bench.engine).connect() as connection:
        count = len(list(bench.log.read(connection)))
    write_random(bench, random.Random(8), 2)
    assert len(list(make_reader(bench).read(None, archive=reopen(archive)))) == count


def test_pruned_entries_are_there(bench: Bench) -> None:
    archive = write_and_publish(bench)
    before = repr(list(make_reader(bench).read(None, archive=reopen(archive))))
    assert prune_small(bench, archive).entries > 0
    assert repr(list(make_reader(bench).read(None, archive=reopen(archive)))) == before


def test_history_of_a_row(bench: Bench) -> None:
    archive = write_and_publish(bench)
    log = make_reader(bench)
    reading = partial(log.history, None, archive=reopen(archive))
    with open_plain(bench.engine).connect() as connection:
        for number in range(1, 7):
            live = bench.log.history(connection, Task, number)
            assert repr(reading(Task, number)) == repr(live)
            key = (number, "a")
            assert repr(reading(Line, key)) == repr(bench.log.history(connection, Line, key))
            for change in live:
                for at in (change.position, change.recorded_at):
                    state = bench.log.as_of(connection, Task, key=number, at=at)
                    archived = reopen(archive)
                    assert log.as_of(None, Task, key=number, at=at, archive=archived) == state


def test_an_archive_that_has_given_up_the_beginning(bench: Bench) -> None:
    archive = write_and_publish(bench)
    bench.log.snapshot(bench.engine, archive)
    write_random(bench, random.Random(8), 6)
    sync(bench, archive)
    retention = Retention(keep_snapshots=1, keep_log=False)
    bench.log.collect(bench.engine, archive, retention=retention)
    first = reopen(archive).read_head().first_sequence
    assert first > 1
    log = make_reader(bench)
    found = list(log.read(None, archive=reopen(archive)))
    assert found[0].sequence == first
    with pytest.raises(PrunedError, match=f"given up the log before sequence {first}"):
        log.history(None, Task, 1, archive=reopen(archive))


def test_a_plaintext_log_needs_no_keys(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    catalog = TypeCatalog.from_models(Base)
    log, sessions = Oplog(catalog, plaintext=True), sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.add(Note(id=1, text="first"))
    with sessions.begin() as session:
        session.get_one(Note, 1).text = "second"
    archive = open_memory()
    log.sync(engine, archive)
    # Even the models are not needed: the archive has the types.
    reader = Oplog(TypeCatalog(), plaintext=True)
    texts = [
        operation.fields["text"]
        for entry in reader.read(None, archive=reopen(archive))
        for operation in entry.operations
    ]
    assert texts == ["first", "second"]
    changes = Oplog(catalog, plaintext=True).history(None, Note, 1, archive=reopen(archive))
    assert [change.fields["text"] for change in changes] == ["first", "second"]


def test_a_sealed_log_needs_its_keys(bench: Bench) -> None:
    archive = write_and_publish(bench)
    keyless = Oplog(bench.log.catalog, plaintext=True)
    with pytest.raises(KeyUnavailableError, match="no keyring is given"):
        keyless.read(None, archive=reopen(archive))
    stranger = Oplog(bench.log.catalog, keyring=Keyring.generate())
    with pytest.raises(KeyUnavailableError):
        list(stranger.read(None, archive=reopen(archive)))


def test_without_connection_and_archive_there_is_nothing_to_read(bench: Bench) -> None:
    log = make_reader(bench)
    asked: list[Callable[[], object]] = [
        partial(log.read, None),
        partial(log.history, None, Task, 1),
        partial(log.as_of, None, Task, key=1, at=1),
    ]
    for ask in asked:
        with pytest.raises(
            ConfigurationError, match="neither a connection nor an archive"
        ) as found:
            ask()
        assert "archive=open_archive(...)" in str(found.value.hint)


def test_nothing_is_asked_of_a_database(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_and_publish(bench)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a database was asked")

    monkeypatch.setattr(sa.engine.Engine, "connect", refuse)
    monkeypatch.setattr(sa.engine.Connection, "exec_driver_sql", refuse)
    log = make_reader(bench)
    assert list(log.read(None, archive=reopen(archive)))
    assert log.history(None, Line, (1, "a"), archive=reopen(archive)) is not None
