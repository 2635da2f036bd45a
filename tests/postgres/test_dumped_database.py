"""What pg_dump makes of a log, loaded into another server in every way that people load it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.errors import ForeignServerError, SchemaVersionError
from oplog.testing import EmbeddedServer
from oplog.testing.binaries import DEBIAN
from tests.logged import track
from tests.postgres.archived import open_memory, reopen
from tests.postgres.copied import age, open_copy
from tests.postgres.keeping import add_task
from tests.postgres.replay_models import Base, Bench, Task, make_bench
from tests.support import install_log

pytestmark = pytest.mark.postgres

PROGRAMS = next(
    (
        one
        for one in sorted(DEBIAN.glob("*/bin"), reverse=True)
        if all((one / name).is_file() for name in ("pg_dump", "psql", "postgres", "initdb"))
    ),
    None,
)
if PROGRAMS is None:
    pytest.skip("pg_dump, psql and a server of one version are needed", allow_module_level=True)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    with EmbeddedServer(bin_dir=PROGRAMS) as old, EmbeddedServer(bin_dir=PROGRAMS) as new:
        yield old, new


def connect(server: EmbeddedServer) -> Iterator[Engine]:
    """A fresh database."""
    engine = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS bank WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE bank")
    engine.dispose()
    engine = sa.create_engine(sa.make_url(server.url).set(database="bank"))
    yield engine
    engine.dispose()


@pytest.fixture
def source(servers: tuple[EmbeddedServer, EmbeddedServer]) -> Iterator[Engine]:
    yield from connect(servers[0])


@pytest.fixture
def target(servers: tuple[EmbeddedServer, EmbeddedServer]) -> Iterator[Engine]:
    yield from connect(servers[1])


@pytest.fixture
def bench(source: Engine) -> Bench:
    """Guarded tables, five entries, of transactions whose ids the other server has not reached."""
    with source.begin() as connection:
        install_log(connection)
    bench = make_bench(source)
    track(source, *Base.metadata.sorted_tables)
    age(source, 3000)
    for _ in range(5):
        bench.write(add_task)
    return bench


def run(
    program: str, server: EmbeddedServer, *arguments: str, text: str = ""
) -> subprocess.CompletedProcess[str]:
    assert isinstance(PROGRAMS, Path)
    command = [PROGRAMS / program, "-h", str(server.directory), "-U", "postgres", *arguments]
    return subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, check=False
    )


def load(
    servers: tuple[EmbeddedServer, EmbeddedServer], *dumping: str, loading: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    dumped = run("pg_dump", servers[0], *dumping, "bank")
    assert dumped.returncode == 0, dumped.stderr
    return run("psql", servers[1], "-q", *loading, "bank", text=dumped.stdout)


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def test_a_whole_dump_is_refused_until_its_owner_says_what_it_is(
    servers: tuple[EmbeddedServer, EmbeddedServer], bench: Bench, target: Engine
) -> None:
    archive = open_memory()
    for batch in bench.log.subscribe(bench.engine, name="mailer"):
        batch.commit()
    bench.log.sync(bench.engine, archive)
    bench.write(add_task)
    assert load(servers, loading=("-v", "ON_ERROR_STOP=1")).returncode == 0
    there = open_copy(target, bench)
    there.write(add_task)
    assert count(target, "task") == 7
    with target.connect() as connection:
        with pytest.raises(ForeignServerError, match="this log was written on server"):
            list(there.log.read(connection))
        connection.rollback()
        with pytest.raises(ForeignServerError):
            there.log.verify(connection)
    with target.connect() as connection:
        report = there.log.incarnate(connection, replaces_original=True)
    assert (report.entries, report.consumers) == (7, ("mailer",))
    with target.connect() as connection:
        assert len(list(there.log.read(connection))) == 7
        connection.rollback()
        assert there.log.verify(connection).ok
    assert len(next(iter(there.log.subscribe(target, name="mailer")))) == 2
    assert there.log.sync(target, reopen(archive)).entries == 2
    assert there.log.check(reopen(archive), target).ok


@pytest.mark.sampled(2)
@pytest.mark.parametrize("more", [(), ("--disable-triggers",)], ids=["plain", "disabled"])
@pytest.mark.parametrize("whole", [True, False], ids=["stopping", "going on"])
def test_rows_alone_do_not_come_into_a_log_that_is_there(
    servers: tuple[EmbeddedServer, EmbeddedServer],
    bench: Bench,
    target: Engine,
    more: tuple[str, ...],
    *,
    whole: bool,
) -> None:
    with target.begin() as connection:
        install_log(connection)
    there = open_copy(target, bench)
    track(target, *Base.metadata.sorted_tables)
    stopping = ("-v", "ON_ERROR_STOP=1", "--single-transaction") if whole else ()
    loaded = load(servers, "--data-only", *more, loading=stopping)
    assert "oplog_guard" in loaded.stderr
    if whole:
        # Nothing of it is there: the database is the empty one that it was.
        assert loaded.returncode != 0
        assert (count(target, "task"), count(target, "oplog.oplog_record")) == (0, 0)
        return
    # Two logs in one: nobody reads, writes or publishes.
    assert count(target, "oplog.oplog_log") == 2
    with target.connect() as connection:
        for doing in (there.log.read, there.log.verify):
            with pytest.raises(SchemaVersionError, match="2 rows in oplog_log") as caught:
                doing(connection)
            connection.rollback()
    assert "load a whole dump" in caught.value.hint
    with pytest.raises(SchemaVersionError, match="2 rows in oplog_log"):
        there.log.sync(target, open_memory())
    with pytest.raises(SchemaVersionError, match="2 rows in oplog_log"):
        there.write(lambda session: session.add(Task(id=1, project="p", title="t")))
