"""A log on a server that it was not written on: refused, until its owner says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from oplog import Archive, IncarnationReport
from oplog.cli import main
from oplog.errors import ConfigurationError, ForeignServerError, LogForkedError
from oplog.testing import EmbeddedServer
from tests.postgres.archived import open_memory, reopen
from tests.postgres.copied import age, copy_database, open_copy
from tests.postgres.keeping import add_task
from tests.postgres.replay_models import Bench, Task, make_bench
from tests.support import administer, install_log

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def other_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def foreign(other_server: EmbeddedServer) -> Iterator[Engine]:
    """A migrated database on another server, whose transaction ids are lower."""
    server, name = sa.make_url(other_server.url), f"copy_{uuid4().hex[:12]}"
    administer(server, f"CREATE DATABASE {name}")
    engine = sa.create_engine(server.set(database=name))
    with engine.begin() as connection:
        install_log(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def bench(engine: Engine) -> Bench:
    age(engine, 3000)
    return make_bench(engine)


@pytest.fixture
def copy(bench: Bench, foreign: Engine) -> Callable[[], Bench]:
    """Copies the bench's database to the other server; the application there."""

    def make() -> Bench:
        copy_database(bench.engine, foreign)
        return open_copy(foreign, bench)

    return make


def consume(bench: Bench, name: str, *, batches: int = 100, size: int = 4000) -> list[int]:
    """Positions that a consumer is given now."""
    seen: list[int] = []
    for count, batch in enumerate(bench.log.subscribe(bench.engine, name=name, max_entries=size)):
        if count == batches:
            break
        seen += [entry.position for entry in batch]
        batch.commit()
    return seen


def read(bench: Bench) -> list[int]:
    with bench.engine.connect() as connection:
        return [entry.position for entry in bench.log.read(connection)]


def verify(bench: Bench) -> bool:
    with bench.engine.connect() as connection:
        return bench.log.verify(connection).ok


def incarnate(bench: Bench, *, replaces_original: bool = False) -> IncarnationReport:
    engine = sa.create_engine(bench.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return bench.log.incarnate(connection, replaces_original=replaces_original)


def write(bench: Bench, count: int) -> None:
    for _ in range(count):
        bench.write(add_task)


def dump_rows(bench: Bench) -> list[tuple[int, str | None]]:
    with bench.sessions() as session:
        return [(one.id, one.title) for one in session.query(Task).order_by(Task.id)]


def test_everything_that_goes_by_transaction_ids_is_refused(
    bench: Bench, copy: Callable[[], Bench]
) -> None:
    archive = open_memory()
    write(bench, 3)
    bench.log.sync(bench.engine, archive)
    there = copy()
    log, engine = there.log, there.engine
    new = open_memory()
    doings: list[Callable[[sa.Connection], object]] = [
        lambda connection: list(log.read(connection)),
        lambda connection: log.history(connection, Task, 1),
        lambda connection: log.as_of(connection, Task, key=1, at=1),
        log.verify,
        log.replay,
        lambda connection: list(log.read(connection, archive=reopen(archive))),
        lambda _: next(iter(log.subscribe(engine, name="fresh"))),
        lambda _: log.sync(engine, reopen(archive)),
        lambda _: log.sync(engine, new),
        lambda _: log.snapshot(engine, new),
        lambda _: log.check(reopen(archive), engine),
        lambda _: log.resync(engine, reopen(archive)),
        lambda _: log.collect(engine, reopen(archive)),
        lambda _: log.prune(engine, reopen(archive), keep=timedelta(0)),
        lambda _: log.inspect_fork(engine, reopen(archive)),
        lambda _: log.replay_lost(engine, reopen(archive)),
        lambda _: log.measure_lag(engine, reopen(archive)),
    ]
    for number, doing in enumerate(doings):
        with engine.connect() as connection, pytest.raises(ForeignServerError) as caught:
            doing(connection)
        assert "oplog incarnate --replace" in caught.value.hint, number
        assert "oplog incarnate --copy" in caught.value.hint, number
    assert new.find_head() is None
    with engine.connect() as connection:
        assert "log-foreign" in {finding.what for finding in log.diagnose(connection)}
    # Versions, tickets and hashes know nothing of servers: the application is not down.
    write(there, 2)
    assert len(dump_rows(there)) == 5


def test_a_copy_begins_a_life_of_its_own(bench: Bench, copy: Callable[[], Bench]) -> None:
    archive = open_memory()
    write(bench, 4)
    bench.log.sync(bench.engine, archive)
    there = copy()
    write(there, 2)
    rows = dump_rows(there)
    report = incarnate(there)
    assert (report.entries, report.archives) == (6, ("memory://test",))
    assert report.previous_server != report.server
    assert dump_rows(there) == rows
    assert len(read(there)) == 6
    assert verify(there)
    assert len(consume(there, "fresh")) == 6
    new = open_memory()
    assert there.log.sync(there.engine, new).entries == 6
    assert there.log.check(reopen(new), there.engine).ok
    with pytest.raises(ForeignServerError, match="belongs to database"):
        there.log.sync(there.engine, reopen(archive))
    write(there, 1)
    assert there.log.sync(there.engine, reopen(new)).entries == 1
    # Long after, when the ids of this server have caught up with the old ones.
    age(there.engine, 4000)
    assert consume(there, "fresh") == read(there)[-1:]
    assert there.log.sync(there.engine, reopen(new)).entries == 0
    assert verify(there)
    with pytest.raises(DBAPIError, match="append-only"), there.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM oplog.oplog_record")
    # And the original knows nothing of it.
    write(bench, 1)
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 1


def test_consumers_miss_nothing_and_get_nothing_twice(
    bench: Bench, copy: Callable[[], Bench]
) -> None:
    seen: dict[str, list[int]] = {"early": [], "middle": [], "late": [], "half": []}
    write(bench, 2)
    seen["early"] += consume(bench, "early")
    write(bench, 3)
    seen["middle"] += consume(bench, "middle")
    write(bench, 4)
    seen["late"] += consume(bench, "late")
    # On its way: two pages of what is new to it were consumed, and there are more.
    seen["half"] += consume(bench, "half", batches=2, size=2)
    write(bench, 1)
    there = copy()
    write(there, 2)
    report = incarnate(there)
    assert report.consumers == ("early", "half", "late", "middle")
    assert report.strangers == ()
    everything = read(there)
    assert len(everything) == 12
    for name, positions in seen.items():
        positions.extend(consume(there, name))
    write(there, 1)
    everything = read(there)
    for name, positions in seen.items():
        positions.extend(consume(there, name))
        assert sorted(positions) == everything, name
    assert consume(there, "never seen before") == everything


def test_a_transaction_that_was_running_when_a_consumer_looked_is_given_once(
    bench: Bench, copy: Callable[[], Bench]
) -> None:
    write(bench, 1)
    with bench.sessions() as slow:
        slow.add(Task(id=1_500_000, project="p2", title="slow"))
        slow.flush()
        write(bench, 1)
        seen = consume(bench, "mailer")
        slow.commit()
    there = copy()
    incarnate(there)
    rest = consume(there, "mailer")
    assert (len(seen), len(rest)) == (2, 1)
    assert sorted(seen + rest) == read(there)


def test_a_place_of_yet_another_history_stays_refused(
    bench: Bench, copy: Callable[[], Bench]
) -> None:
    write(bench, 1)
    for name in ("old", "new"):
        consume(bench, name)
    bench.tamper(
        "UPDATE oplog.oplog_consumer SET cursor = jsonb_set(cursor, '{timeline}', '0') "
        "WHERE name = 'old'"
    )
    there = copy()
    report = incarnate(there)
    assert (report.consumers, report.strangers) == (("new",), ("old",))
    with pytest.raises(ConfigurationError, match="the cursor belongs to server"):
        consume(there, "old")
    assert consume(there, "new") == []


def test_one_that_replaces_the_original_goes_on_with_its_archive(
    bench: Bench, copy: Callable[[], Bench]
) -> None:
    archive = open_memory()
    write(bench, 3)
    bench.log.sync(bench.engine, archive)
    write(bench, 2)
    there = copy()
    write(there, 1)
    with pytest.raises(ForeignServerError):
        there.log.sync(there.engine, reopen(archive))
    report = incarnate(there, replaces_original=True)
    assert report.archives == ("memory://test",)
    # What was published is not published again, and what was not is.
    assert there.log.sync(there.engine, reopen(archive)).entries == 3
    assert there.log.check(reopen(archive), there.engine).ok
    with there.engine.connect() as connection:
        assert len(list(there.log.read(connection, archive=reopen(archive)))) == 6
    assert there.log.prune(there.engine, reopen(archive), keep=timedelta(0)).entries == 6
    # Whoever is still there in its place is told so.
    write(bench, 1)
    with pytest.raises(ForeignServerError, match="belongs to database"):
        bench.log.sync(bench.engine, reopen(archive))
    with pytest.raises(ForeignServerError):
        bench.log.collect(bench.engine, reopen(archive))


def test_what_the_original_published_since_is_a_fork(
    bench: Bench, copy: Callable[[], Bench]
) -> None:
    archive = open_memory()
    write(bench, 1)
    bench.log.sync(bench.engine, archive)
    there = copy()
    write(bench, 2)
    bench.log.sync(bench.engine, reopen(archive))
    incarnate(there, replaces_original=True)
    rows = dump_rows(there)
    with pytest.raises(LogForkedError) as caught:
        there.log.sync(there.engine, reopen(archive))
    assert caught.value.lost_count == 2
    assert caught.value.hint.index("fork abandon") < caught.value.hint.index("fork replay-lost")
    assert dump_rows(there) == rows


def move(bench: Bench, archive: Archive | None = None) -> None:
    """As an upgrade leaves a database: the files are the same, the server has another name."""
    del archive
    with bench.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM FREEZE oplog.oplog_record")
    bench.tamper(
        *(
            f"UPDATE oplog.{table} SET cursor = replace(cursor::text, "
            "(SELECT system_identifier::text FROM pg_control_system()), '1234567')::jsonb"
            for table in ("oplog_consumer", "oplog_archive")
        ),
        "UPDATE oplog.oplog_archive SET origin_server = '1234567', owner_server = '1234567'",
        "DO $$ BEGIN EXECUTE (SELECT 'COMMENT ON TABLE oplog.oplog_log IS ' || quote_literal("
        "replace(obj_description('oplog.oplog_log'::regclass), system_identifier::text, "
        "'1234567')) FROM pg_control_system()); END $$",
    )


def test_after_an_upgrade_everything_goes_on(bench: Bench) -> None:
    archive = open_memory()
    write(bench, 3)
    seen = consume(bench, "mailer")
    bench.log.sync(bench.engine, archive)
    write(bench, 2)
    move(bench)
    write(bench, 1)
    with pytest.raises(ForeignServerError):
        read(bench)
    with pytest.raises(ForeignServerError):
        bench.log.sync(bench.engine, reopen(archive))
    report = incarnate(bench, replaces_original=True)
    assert (report.entries, report.previous_server) == (0, "1234567")
    assert report.consumers == ("mailer",)
    rest = consume(bench, "mailer")
    assert (len(seen), len(rest)) == (3, 3)
    assert sorted(seen + rest) == read(bench)
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 3
    assert verify(bench)


def test_after_an_upgrade_tables_may_have_been_rewritten(bench: Bench) -> None:
    write(bench, 2)
    seen = consume(bench, "mailer")
    bench.tamper(
        "ALTER TABLE oplog.oplog_record ADD COLUMN extra text DEFAULT clock_timestamp()::text",
        "ALTER TABLE oplog.oplog_record DROP COLUMN extra",
    )
    write(bench, 2)
    move(bench)
    assert incarnate(bench, replaces_original=True).entries == 0
    assert sorted(seen + consume(bench, "mailer")) == read(bench)


def test_where_rows_contradict_each_other_nothing_is_guessed(bench: Bench) -> None:
    write(bench, 2)
    consume(bench, "mailer")
    bench.tamper(
        "ALTER TABLE oplog.oplog_log DISABLE TRIGGER ALL",
        "UPDATE oplog.oplog_log SET created_at = created_at",
        "ALTER TABLE oplog.oplog_log ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    move(bench)
    with pytest.raises(ConfigurationError, match="cannot be told"):
        incarnate(bench, replaces_original=True)
    with pytest.raises(ForeignServerError):
        read(bench)


def test_only_the_owner_says_whose_log_it_is(bench: Bench, engine: Engine) -> None:
    write(bench, 1)
    role = f"app_{uuid4().hex[:8]}"
    bench.tamper(
        f"CREATE ROLE {role} LOGIN",
        f"GRANT USAGE ON SCHEMA oplog TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA oplog TO {role}",
    )
    try:
        other = sa.create_engine(engine.url, poolclass=sa.NullPool)
        with other.connect() as connection:
            connection.exec_driver_sql(f"SET SESSION AUTHORIZATION {role}")
            connection.commit()
            with pytest.raises(ConfigurationError, match="only the owner"):
                bench.log.incarnate(connection, replaces_original=False)
            # Whoever reads needs no more rights than before.
            assert len(list(bench.log.read(connection))) == 1
    finally:
        bench.tamper(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_on_the_command_line(
    bench: Bench,
    copy: Callable[[], Bench],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "plain.py").write_text(
        "from oplog import Oplog, TypeCatalog\nlog = Oplog(TypeCatalog(), plaintext=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write(bench, 2)
    consume(bench, "mailer")
    there = copy()
    url = there.engine.url.render_as_string(hide_password=False)
    common = ["--app", "plain:log", "--database", url]
    archive = ["--archive", f"file://{tmp_path}/archive"]
    assert main([*common, "sync", *archive]) == 2
    told = capsys.readouterr().err
    assert "oplog incarnate --replace" in told
    assert main([*common, "incarnate"]) == 2
    assert main([*common, "incarnate", "--copy", "--replace"]) == 2
    capsys.readouterr()
    assert main([*common, "incarnate", "--copy", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["entries"], document["consumers"]) == (2, ["mailer"])
    assert main([*common, "incarnate", "--replace"]) == 0
    assert "goes on: mailer" in capsys.readouterr().out
    assert main([*common, "sync", *archive]) == 0


def test_in_a_transaction_it_is_refused(bench: Bench) -> None:
    with bench.engine.begin() as connection, pytest.raises(ConfigurationError, match="is in one"):
        bench.log.incarnate(connection, replaces_original=False)
