"""`?plugin=oplog` in a URL: every pool, forks, asyncio, and databases that are not ready yet."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool, Pool, QueuePool, StaticPool

from oplog import Keyring, LoggedEntry, Oplog, TypeCatalog
from oplog.cli import main
from oplog.errors import ConfigurationError, UnloggedWriteError
from oplog.outside.learned_log import learn_log
from oplog.outside.program_settings import read_settings
from tests.logged import run, track
from tests.postgres.test_statements import listen
from tests.support import assert_replays, install_log

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Pet(Base):
    __tablename__ = "pet"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[int] = mapped_column(sa.ForeignKey("person.id", ondelete="CASCADE"))


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Keyring:
    keyring = Keyring.generate()
    monkeypatch.setenv("OPLOG_KEYRING", keyring.to_text())
    monkeypatch.chdir(tmp_path)
    return keyring


@pytest.fixture
def url(engine: Engine, keyring: Keyring) -> URL:
    """Of a database with two guarded tables and a log."""
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.sorted_tables)
    return add_plugin(engine.url)


def add_plugin(url: URL) -> URL:
    return url.update_query_dict({"plugin": "oplog"})


def learn(engine: Engine) -> Oplog:
    with engine.connect() as connection:
        return learn_log(read_settings(os.environ, Path.cwd()), connection)


def read(engine: Engine) -> list[LoggedEntry]:
    with engine.connect() as connection:
        return list(learn(engine).read(connection))


def tell(engine: Engine) -> list[str]:
    return [
        f"{one.kind.name} {one.type_name} {one.key['id']}"
        for entry in read(engine)
        for one in entry.operations
    ]


def write(engine: Engine, number: int) -> None:
    with Session(engine) as session, session.begin():
        session.add(Person(id=number, name=f"p{number}"))


@pytest.mark.parametrize("pool", [NullPool, QueuePool, StaticPool])
def test_an_application_is_logged_by_its_url(url: URL, engine: Engine, pool: type[Pool]) -> None:
    logged = sa.create_engine(url, poolclass=pool)
    with Session(logged) as session, session.begin():
        session.add(Person(id=1, name="ada"))
        session.flush()
        session.add(Pet(id=7, owner=1))
    with Session(logged) as session, session.begin():
        session.get_one(Person, 1).name = "Ada L."
    with logged.begin() as connection:
        connection.execute(sa.insert(Person), [{"id": 2, "name": "b"}, {"id": 3, "name": "c"}])
        connection.exec_driver_sql("DELETE FROM person WHERE id = 1")
    assert sorted(tell(engine)) == [
        *("CREATE person 1", "CREATE person 2", "CREATE person 3", "CREATE pet 7"),
        *("DELETE person 1", "DELETE pet 7", "UPDATE person 1"),
    ]
    assert_replays(learn(engine), engine)
    logged.dispose()


def test_models_that_name_the_schema(url: URL, engine: Engine) -> None:
    person = sa.Table("person", sa.MetaData(), sa.Column("id", sa.Integer), schema="public")
    logged = sa.create_engine(url)
    write(logged, 1)
    with logged.begin() as connection:
        connection.execute(sa.update(person).values(id=5))
        connection.execute(sa.delete(person).where(person.c.id == 5))
    assert tell(engine) == ["CREATE person 1", "DELETE person 1"]
    assert_replays(learn(engine), engine)
    logged.dispose()


def test_nothing_is_asked_before_a_guarded_table_is_written(
    url: URL, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = sa.create_engine(url)
    with listen(logged, monkeypatch) as seen, logged.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
        connection.exec_driver_sql("CREATE TABLE other (id int)")
        connection.exec_driver_sql("INSERT INTO other VALUES (1)")
    assert len(list(seen)) == 3
    logged.dispose()


def test_a_transaction_that_is_rolled_back(url: URL, engine: Engine) -> None:
    logged = sa.create_engine(url)
    with Session(logged) as session:
        session.add(Person(id=1, name="ada"))
        session.flush()
        session.rollback()
        session.add(Person(id=2, name="bo"))
        session.commit()
    assert tell(engine) == ["CREATE person 2"]
    logged.dispose()


def test_a_table_that_is_guarded_later(url: URL, engine: Engine) -> None:
    logged = sa.create_engine(url)
    write(logged, 1)
    run(engine, "CREATE TABLE note (id int PRIMARY KEY, text text)")
    track(engine, sa.Table("note", sa.MetaData()))

    def note(number: int) -> None:
        with logged.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO note VALUES ({number}, 'x')")

    with pytest.raises(UnloggedWriteError, match=r'"note" was changed') as refused:
        note(1)
    assert refused.value.retryable
    note(1)
    assert tell(engine) == ["CREATE person 1", "CREATE note 1"]
    # A new engine need not be refused first.
    again = sa.create_engine(url)
    with again.begin() as connection:
        connection.exec_driver_sql("UPDATE note SET text = 'y'")
    assert tell(engine)[2:] == ["UPDATE note 1"]
    logged.dispose()
    again.dispose()


def test_a_table_that_is_altered_while_the_program_runs(url: URL, engine: Engine) -> None:
    logged = sa.create_engine(url)
    write(logged, 1)
    run(engine, "ALTER TABLE person ADD COLUMN age int")
    for engine_again in (logged, sa.create_engine(url, poolclass=NullPool)):
        for attempt in range(2):
            try:
                with engine_again.begin() as connection:
                    connection.exec_driver_sql("UPDATE person SET age = coalesce(age, 0) + 1")
                break
            except Exception as error:  # noqa: BLE001 - only what may be run again
                assert attempt == 0
                assert getattr(error, "retryable", False)  # noqa: PT017
    assert [dict(o.fields) for e in read(engine) for o in e.operations][1:] == [
        {"age": 1},
        {"age": 2},
    ]
    assert_replays(learn(engine), engine)
    logged.dispose()


def test_a_database_that_is_not_there_yet(
    bare_database_url: URL, keyring: Keyring, spare_engine: Engine
) -> None:
    missing = sa.create_engine(add_plugin(bare_database_url.set(database="not_there")))
    with pytest.raises(sa.exc.OperationalError):
        missing.connect()
    logged = sa.create_engine(add_plugin(bare_database_url))
    plain = sa.create_engine(bare_database_url, poolclass=NullPool)
    Base.metadata.create_all(logged)
    write(logged, 1)
    with plain.begin() as connection:
        install_log(connection)
    write(logged, 2)
    track(plain, Person.__table__)  # type: ignore[arg-type]
    write(logged, 3)
    assert tell(plain) == ["CREATE person 3"]
    logged.dispose()


def test_jobs_that_empty_tables_meet_the_guard(url: URL, engine: Engine) -> None:
    logged = sa.create_engine(url)
    write(logged, 1)
    with pytest.raises(UnloggedWriteError, match="TRUNCATE"), logged.begin() as connection:
        connection.exec_driver_sql("TRUNCATE pet")
    with logged.begin() as connection:
        connection.exec_driver_sql("DELETE FROM person")
    assert tell(engine) == ["CREATE person 1", "DELETE person 1"]
    logged.dispose()


async def test_an_asynchronous_engine(url: URL, engine: Engine) -> None:
    logged = create_async_engine(url)
    async with AsyncSession(logged) as session, session.begin():
        session.add(Person(id=1, name="ada"))
    async with logged.begin() as connection:
        await connection.exec_driver_sql("UPDATE person SET name = 'x'")
    await logged.dispose()
    assert tell(engine) == ["CREATE person 1", "UPDATE person 1"]


def test_threads_that_write_first(url: URL, engine: Engine) -> None:
    logged = sa.create_engine(url, pool_size=8)
    gate = threading.Barrier(8)

    def work(number: int) -> None:
        gate.wait(20)
        for step in range(3):
            write(logged, 10 * number + step)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(tell(engine)) == 24
    assert_replays(learn(engine), engine)
    logged.dispose()


def test_children_of_a_fork(url: URL, engine: Engine) -> None:
    logged = sa.create_engine(url)
    write(logged, 1)
    children = []
    for number in (2, 3):
        child = os.fork()
        if not child:
            code = 1
            try:
                logged.dispose(close=False)
                write(logged, number)
                write(sa.create_engine(url, poolclass=NullPool), number + 10)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    write(logged, 4)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert sorted(tell(engine)) == [f"CREATE person {n}" for n in (1, 12, 13, 2, 3, 4)]
    logged.dispose()


def test_the_types_of_another_application_are_kept(url: URL, engine: Engine) -> None:
    catalog = TypeCatalog.from_models(
        Base,
        aggregates={"pet": "person/{owner}", "person": "person/{id}"},
        exclude={"person.name": "x"},
    )
    log = Oplog(catalog, keyring=Keyring.from_env())
    own = sa.create_engine(engine.url)
    log.attach(own)
    write(own, 1)
    with Session(own) as session, session.begin():
        session.add(Pet(id=7, owner=1))
    logged = sa.create_engine(url)
    with Session(logged) as session, session.begin():
        session.add(Pet(id=8, owner=1))
        session.add(Person(id=2, name="bo"))
    with engine.connect() as connection:
        entries = list(log.read(connection))
        shapes = log.list_types(connection).shapes
    assert [e.aggregate for e in entries] == ["person/1", "person/1", "person/1", "person/2"]
    assert [dict(o.fields) for e in entries for o in e.operations][-1] == {"id": 2}
    assert {s.revision for s in shapes} == {1}
    own.dispose()
    logged.dispose()


def test_an_engine_for_each_call_learns_once(
    url: URL, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for number in range(4):
        logged = sa.create_engine(url, poolclass=NullPool)
        with listen(logged, monkeypatch) as seen:
            write(logged, number)
        counts.append(len(list(seen)))
    assert counts[-1] == counts[-2] < counts[0] / 2, counts
    assert len(tell(engine)) == 4


def test_engines_that_are_gone_leave_nothing(url: URL, engine: Engine) -> None:
    def count() -> int:
        gc.collect()
        kinds: tuple[type[Any], ...] = (Oplog, Engine)
        # Not by isinstance, which wakes the lazy objects that other packages have made.
        return sum(issubclass(type(one), kinds) for one in gc.get_objects())

    write(sa.create_engine(url, poolclass=NullPool), 0)
    before = count()
    for number in range(1, 30):
        write(sa.create_engine(url, poolclass=NullPool), number)
    assert count() <= before + 1
    assert len(tell(engine)) == 30


def test_what_cannot_be_logged_is_refused_when_the_engine_is_made(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="sqlite"):
        sa.create_engine("sqlite://?plugin=oplog")
    monkeypatch.delenv("OPLOG_KEYRING")
    with pytest.raises(ConfigurationError, match="no keyring"):
        sa.create_engine("postgresql+psycopg://nowhere/x?plugin=oplog")
    monkeypatch.setenv("OPLOG_PLAINTEXT", "1")
    sa.create_engine("postgresql+psycopg://nowhere/x?plugin=oplog")


def test_a_dropped_partition_is_seen_by_verify_alone(url: URL, engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE event (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (1) TO (10)",
    )
    track(engine, sa.Table("event", sa.MetaData()))
    logged = sa.create_engine(url)
    with logged.begin() as connection:
        connection.exec_driver_sql("INSERT INTO event VALUES (1)")
    assert tell(engine) == ["CREATE event 1"]
    with logged.begin() as connection:
        connection.exec_driver_sql("DROP TABLE event_1")
    with engine.connect() as connection:
        found = learn(engine).verify(connection).differences
    assert [(one.kind, one.key) for one in found] == [("missing", {"id": 1})]
    logged.dispose()


def test_the_command_line_reads_a_log_without_an_application(
    url: URL, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    write(engine_of(url), 1)
    there = ["--app", "reflected", "--database", url.render_as_string(hide_password=False)]
    assert main([*there, "verify"]) == 0
    assert main([*there, "history", "person", "1"]) == 0
    assert "create" in capsys.readouterr().out
    assert main([*there, "adopt", "--dry-run"]) == 0
    assert main([*there, "doctor"]) in (0, 3)
    assert "catalog" not in capsys.readouterr().out


def engine_of(url: URL) -> Engine:
    return sa.create_engine(url, poolclass=NullPool)


def test_what_was_learned_is_of_the_state_before(url: URL, engine: Engine) -> None:
    """A table that is altered while an engine learns is not taken for the one after it."""
    for number in range(3):
        write(engine_of(url), number)
    slow = engine_of(url)
    altered = False

    def alter(*_: object) -> None:
        nonlocal altered
        statement = str(_[2])
        if not altered and "pg_trigger g" in statement and "count(*)" in statement:
            altered = True
            run(engine, "ALTER TABLE pet ADD COLUMN age int")

    run(engine, "COMMENT ON TABLE person IS 'x'", "ALTER TABLE pet ADD COLUMN name text")
    sa.event.listen(slow, "before_cursor_execute", alter)
    with slow.begin() as connection:
        connection.exec_driver_sql("UPDATE person SET name = 'y' WHERE id = 1")
    assert altered
    with engine_of(url).begin() as connection:
        connection.exec_driver_sql("INSERT INTO pet (id, owner, age) VALUES (9, 1, 7)")
    fields = dict(read(engine)[-1].operations[0].fields)
    assert fields == {"id": 9, "owner": 1, "name": None, "age": 7}
    assert_replays(learn(engine), engine)
