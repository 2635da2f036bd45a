"""Tables as they were where the log, or its beginning, is in an archive."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from oplog import Archive, Keyring, Oplog
from oplog.errors import ConfigurationError, KeyUnavailableError, PrunedError
from tests.postgres.archived import open_memory, reopen
from tests.postgres.pruned import list_positions, open_plain, prune, sync, write_random
from tests.postgres.replay_models import (
    Account,
    Bench,
    Car,
    Line,
    Node,
    Owner,
    Task,
    make_bench,
    write_history,
)

pytestmark = pytest.mark.postgres

MODELS: tuple[Any, ...] = (Task, Line, Account, Owner, Node, Car)
JOINED = sa.select(Task.id, Line.number).join(Line, Line.order_id == Task.id).order_by(Task.id)


@pytest.fixture
def bench(engine: Engine) -> Bench:
    bench = make_bench(engine)
    write_history(bench)
    write_random(bench, random.Random(11), 6)
    return bench


@pytest.fixture
def archive(bench: Bench) -> Archive:
    archive = open_memory()
    sync(bench, archive)
    return archive


@pytest.fixture
def connection(bench: Bench) -> Iterator[Connection]:
    with open_plain(bench.engine).connect() as connection:
        yield connection


def ask(log: Oplog, connection: Connection | None, at: int, **options: Any) -> list[str]:
    """All rows of all models, as text for NaN."""
    found: list[str] = []
    for model in MODELS:
        found += [repr(dict(row)) for row in log.as_of(connection, model, at=at, **options)]
        if connection is not None:
            connection.rollback()
    return found


def ask_differences(
    log: Oplog, connection: Connection | None, before: int, **options: Any
) -> list[str]:
    return [
        repr((one.key, one.kind, one.changes, one.records))
        for model in MODELS
        for one in log.diff(connection, model, before=before, **options)
    ]


def test_an_archive_alone_gives_what_the_database_gives(
    bench: Bench, archive: Archive, connection: Connection
) -> None:
    reader = Oplog(bench.log.catalog, keyring=bench.log.keyring)
    positions = list_positions(bench)
    for at in (positions[0], positions[7], positions[-3], positions[-1]):
        wanted = ask(bench.log, connection, at)
        assert ask(reader, None, at, archive=archive) == wanted
        assert ask(reader, None, at, archive=archive, shape="then") == wanted
        assert ask(reader, connection, at, archive=archive) == wanted
        differences = ask_differences(bench.log, connection, at)
        assert ask_differences(reader, None, at, archive=archive) == differences
        assert ask_differences(reader, connection, at, archive=archive) == differences
    versions = bench.log.versions(connection, Task, 2)
    assert reader.versions(None, Task, 2, archive=archive) == versions


async def test_an_archive_alone_is_read_without_waiting(bench: Bench, archive: Archive) -> None:
    at = list_positions(bench)[7]
    rows = list(bench.log.as_of(None, Task, at=at, archive=archive))
    assert await bench.log.as_of_async(None, Task, at=at, archive=archive) == rows
    async with bench.log.moment_async(None, at=at, archive=archive) as then:
        assert await then.rows(Task, limit=1) == rows[:1]


def test_what_an_archive_alone_cannot_do(bench: Bench, archive: Archive) -> None:
    at = list_positions(bench)[7]
    with pytest.raises(ConfigurationError, match="needs a database that runs it"):
        bench.log.as_of(None, JOINED, at=at, archive=archive)
    with pytest.raises(ConfigurationError, match="neither a connection nor an archive"):
        bench.log.as_of(None, Task, at=at)
    with pytest.raises(ConfigurationError, match="in the future"):
        bench.log.as_of(None, Task, at=10**9, archive=archive)
    with pytest.raises(ConfigurationError, match="began after position 0"):
        bench.log.as_of(None, Task, at=0, archive=archive)
    stranger = Oplog(bench.log.catalog, plaintext=True)
    with pytest.raises(KeyUnavailableError):
        stranger.as_of(None, Task, at=at, archive=archive)
    stranger = Oplog(bench.log.catalog, keyring=Keyring.generate())
    with pytest.raises(KeyUnavailableError):
        stranger.as_of(None, Task, at=at, archive=archive)


def test_a_pruned_log(bench: Bench, archive: Archive, connection: Connection) -> None:
    positions = list_positions(bench)[::6]
    wanted = [ask(bench.log, connection, at) for at in positions]
    differences = ask_differences(bench.log, connection, positions[1])
    joined = list(bench.log.as_of(connection, JOINED, at=positions[-2]))
    connection.rollback()
    prune(bench, archive)
    bench.write(lambda s: s.add(Task(id=50, project="late", title=None)))
    given = reopen(archive)
    for at, rows in list(zip(positions, wanted, strict=True)):
        assert ask(bench.log, connection, at, archive=given) == rows
    last = list_positions(bench)[-1]
    assert (
        ask_differences(bench.log, connection, positions[1], after=last - 1, archive=given)
        == differences
    )
    assert list(bench.log.as_of(connection, JOINED, at=positions[-2], archive=given)) == joined
    connection.rollback()
    with pytest.raises(PrunedError, match="pruned") as caught:
        bench.log.as_of(connection, Task, at=positions[1])
    assert archive.url in str(caught.value)
    connection.rollback()
    with pytest.raises(PrunedError):
        list(bench.log.diff(connection, Task, before=positions[1]))


def test_what_is_left_of_a_pruned_log_answers_if_it_can(
    bench: Bench, archive: Archive, connection: Connection
) -> None:
    # Before anything was pruned.
    end = bench.last_position()
    before = ask(bench.log, connection, end)
    prune(bench, archive)
    bench.write(lambda s: s.add(Task(id=50, project="late", title=None)))
    # Rows that were made since, and no others: the live rows are those of then.
    assert ask(bench.log, connection, bench.last_position() - 1) == before
    bench.write(lambda s: setattr(s.get_one(Task, 50), "title", "later"))
    (late,) = [
        row
        for row in bench.log.as_of(connection, Task, at=bench.last_position() - 1)
        if row["id"] == 50
    ]
    assert late["title"] is None
    connection.rollback()
    at = bench.last_position()
    key = next(int(row["id"]) for row in bench.log.as_of(connection, Task, at=at))
    connection.rollback()
    bench.write(lambda s: setattr(s.get_one(Task, key), "title", "changed"))
    # What that row was before is in the archive only.
    with pytest.raises(PrunedError):
        bench.log.as_of(connection, Task, at=at)
    connection.rollback()
    assert list(bench.log.as_of(connection, Line, at=at))
