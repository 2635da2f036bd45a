"""Copies on the same server, and databases restored beside: whose is the archive?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive
from oplog.errors import ForeignServerError
from tests.postgres.archived import dump_objects, open_memory, reopen, restore_into
from tests.postgres.keeping import add_task
from tests.postgres.replay_models import Bench, Task, make_bench
from tests.postgres.restored import make_target
from tests.support import administer

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def clone(bench: Bench) -> Iterator[Callable[[], Bench]]:
    """Makes a copy with everything in it, as CREATE DATABASE ... TEMPLATE does."""
    names: list[str] = []
    url = bench.engine.url

    def make() -> Bench:
        names.append(f"clone_{uuid4().hex[:12]}")
        bench.engine.dispose()
        administer(
            url.set(database="postgres"), f"CREATE DATABASE {names[-1]} TEMPLATE {url.database}"
        )
        engine = sa.create_engine(url.set(database=names[-1]), poolclass=sa.NullPool)
        return make_bench(engine, bench.log.keyring)

    yield make
    for name in names:
        administer(url.set(database="postgres"), f"DROP DATABASE {name} WITH (FORCE)")


def write(bench: Bench, count: int = 1) -> None:
    for _ in range(count):
        bench.write(add_task)


def count_rows(bench: Bench) -> int:
    with bench.sessions() as session:
        return session.query(Task).count()


def published(bench: Bench) -> Archive:
    archive = open_memory()
    write(bench, 3)
    bench.log.sync(bench.engine, archive)
    return archive


def incarnate(bench: Bench, *, replaces_original: bool) -> None:
    with bench.engine.connect() as connection:
        bench.log.incarnate(connection, replaces_original=replaces_original)


def test_a_copy_reads_and_does_not_publish_into_the_archive_of_the_original(
    bench: Bench, clone: Callable[[], Bench]
) -> None:
    archive = published(bench)
    copy = clone()
    write(copy)
    log, engine = copy.log, copy.engine
    before = dump_objects(archive)
    doings: list[Callable[[], object]] = [
        lambda: log.sync(engine, reopen(archive)),
        lambda: log.sync(engine, reopen(archive), fork="fork"),
        lambda: log.snapshot(engine, reopen(archive)),
        lambda: log.resync(engine, reopen(archive)),
        lambda: log.collect(engine, reopen(archive)),
        lambda: log.prune(engine, reopen(archive), keep=timedelta(0)),
        lambda: log.inspect_fork(engine, reopen(archive)),
        lambda: log.replay_lost(engine, reopen(archive)),
    ]
    for number, doing in enumerate(doings):
        with pytest.raises(ForeignServerError, match="belongs to database") as caught:
            doing()
        assert "oplog incarnate --copy" in caught.value.hint, number
    assert dump_objects(archive) == before
    with engine.connect() as connection:
        assert len(list(log.read(connection))) == 4
        connection.rollback()
        assert log.verify(connection).ok
    assert sum(len(batch) for batch in take(copy)) == 4
    # The original goes on as if nothing had been.
    write(bench)
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 1
    assert bench.log.check(reopen(archive), bench.engine).ok


def take(bench: Bench) -> Iterator[list[object]]:
    for batch in bench.log.subscribe(bench.engine, name="mailer"):
        yield list(batch)
        batch.commit()


def test_a_copy_without_a_row_is_refused_too(bench: Bench, clone: Callable[[], Bench]) -> None:
    archive = published(bench)
    copy = clone()
    copy.tamper("DELETE FROM oplog.oplog_archive")
    write(copy)
    with pytest.raises(ForeignServerError, match="belongs to database"):
        copy.log.sync(copy.engine, reopen(archive))


def test_a_copy_has_an_archive_of_its_own(bench: Bench, clone: Callable[[], Bench]) -> None:
    archive = published(bench)
    assert sum(len(batch) for batch in take(bench)) == 3
    copy = clone()
    incarnate(copy, replaces_original=False)
    write(copy)
    new = open_memory()
    assert copy.log.sync(copy.engine, new).entries == 4
    assert copy.log.check(reopen(new), copy.engine).ok
    # On the same server transaction ids stay, and so do consumers' places.
    assert sum(len(batch) for batch in take(copy)) == 1
    with pytest.raises(ForeignServerError, match="belongs to database"):
        copy.log.sync(copy.engine, reopen(archive))


def test_one_that_replaces_the_original_takes_its_archive(
    bench: Bench, clone: Callable[[], Bench]
) -> None:
    archive = published(bench)
    write(bench)
    copy = clone()
    incarnate(copy, replaces_original=True)
    write(copy)
    assert copy.log.sync(copy.engine, reopen(archive)).entries == 2
    assert copy.log.check(reopen(archive), copy.engine).ok
    write(bench)
    with pytest.raises(ForeignServerError, match="belongs to database"):
        bench.log.sync(bench.engine, reopen(archive))


def test_of_databases_restored_from_one_archive_the_first_to_publish_takes_it(
    bench: Bench, spare_engine: Engine, clone: Callable[[], Bench]
) -> None:
    archive = published(bench)
    target = make_target(spare_engine, bench)
    restore_into(target, reopen(archive))
    # A pass with nothing new takes nothing over.
    assert target.log.sync(target.engine, reopen(archive)).entries == 0
    write(bench)
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 1
    other = clone()
    with pytest.raises(ForeignServerError):
        other.log.sync(other.engine, reopen(archive))


def test_the_original_that_lost_its_archive_to_a_drill_is_told(
    bench: Bench, spare_engine: Engine
) -> None:
    archive = published(bench)
    target = make_target(spare_engine, bench)
    restore_into(target, reopen(archive))
    write(target)
    assert target.log.sync(target.engine, reopen(archive)).entries == 1
    rows = count_rows(bench)
    write(bench)
    for fork in ("stop", "fork"):
        with pytest.raises(ForeignServerError, match="belongs to database"):
            bench.log.sync(bench.engine, reopen(archive), fork=fork)
    assert count_rows(bench) == rows + 1
    incarnate(bench, replaces_original=True)
    assert bench.log.sync(bench.engine, reopen(archive), fork="fork").lost == 1
    assert bench.log.check(reopen(archive), bench.engine).ok
    with pytest.raises(ForeignServerError, match="belongs to database"):
        target.log.sync(target.engine, reopen(archive))
