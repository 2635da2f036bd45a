"""One model and tables of its name in several schemas: never two tables under one type.

A name without a schema means what the search path of the moment finds first. A write to a
table that is not the log's is refused, and so is a type that was stored for another table
which is still there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import (
    CaptureMismatchError,
    NotCapturableError,
    OplogError,
    SchemaDriftError,
    UnloggedWriteError,
)
from oplog.postgres.quoting import (
    qualify,
)
from oplog.schema.tables import (
    track_statements,
)
from tests.logged import LoggedDatabase

pytestmark = pytest.mark.postgres

TENANTS = ("t1", "t2")
REFUSALS = (UnloggedWriteError, SchemaDriftError, CaptureMismatchError)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[str]
    number: Mapped[int | None] = mapped_column(server_default="7")


def make_log(keyring: Keyring | None = None) -> Oplog:
    return Oplog(TypeCatalog.from_models(Base), keyring=keyring or Keyring.generate())


class Paths(LoggedDatabase):
    """A database with the table in two schemas, and transactions under one path or the other."""

    @contextmanager
    def under(self, tenant: str) -> Iterator[Session]:
        with self.sessions.begin() as session:
            enter(session, tenant)
            yield session

    def list_rows(self, tenant: str) -> list[tuple[int, str]]:
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql(f"SELECT id, body FROM {tenant}.note ORDER BY 1")
            return [(row[0], row[1]) for row in rows]

    @contextmanager
    def refused(self, *kinds: type[OplogError]) -> Iterator[None]:
        """Nothing is committed and nothing logged, and the error says why."""
        before = self.tell(), [self.list_rows(tenant) for tenant in TENANTS]
        with pytest.raises(kinds or REFUSALS) as caught:
            yield
        assert "search_path" in caught.value.hint
        assert (self.tell(), [self.list_rows(tenant) for tenant in TENANTS]) == before
        self.assert_pool_is_clean()
        self.assert_replays()


def enter(session: Session, tenant: str) -> None:
    session.execute(sa.text(f"SET LOCAL search_path = {tenant}, public"))


def open_paths(engine: Engine, guarded: tuple[str, ...]) -> Paths:
    log, sessions = make_log(), sessionmaker(engine)
    paths = Paths(engine, log, sessions)
    for tenant in TENANTS:
        paths.execute(
            f"CREATE SCHEMA {tenant}",
            f"CREATE TABLE {tenant}.note (id int PRIMARY KEY, body text NOT NULL, "
            "number int DEFAULT 7)",
        )
        if tenant in guarded:
            paths.execute(*track_statements(qualify(["note"], tenant)))
    log.attach(sessions)
    return paths


GUARDED = {"none": (), "one": ("t1",), "both": ("t1", "t2")}


@pytest.fixture(params=GUARDED)
def paths(engine: Engine, request: pytest.FixtureRequest) -> Paths:
    return open_paths(engine, GUARDED[request.param])


@pytest.fixture
def plain(engine: Engine) -> Paths:
    return open_paths(engine, ())


Work = Callable[[Session], Any]


def add(session: Session) -> None:
    session.add(Note(id=2, body="x", number=1))


def add_with_default(session: Session) -> None:
    session.add(Note(id=2, body="x"))


def add_many(session: Session) -> None:
    session.execute(sa.insert(Note), [{"id": n, "body": "x"} for n in (2, 3)])


def insert_core(session: Session) -> None:
    session.execute(sa.insert(Note).values(id=2, body=sa.func.upper("x"), number=1))


def change_object(session: Session) -> None:
    session.get_one(Note, 1).body = "changed"


def change_by_key(session: Session) -> None:
    session.execute(sa.update(Note).where(Note.id == 1).values(body="changed"))


def change_to_unknown(session: Session) -> None:
    session.execute(sa.update(Note).where(Note.id == 1).values(body=sa.func.upper("x")))


def delete_object(session: Session) -> None:
    session.delete(session.get_one(Note, 1))


def delete_by_key(session: Session) -> None:
    session.execute(sa.delete(Note).where(Note.id == 1))


WAYS: dict[str, Work] = {
    work.__name__: work
    for work in (
        add,
        add_with_default,
        add_many,
        insert_core,
        change_object,
        change_by_key,
        change_to_unknown,
        delete_object,
        delete_by_key,
    )
}


def fill(paths: Paths) -> None:
    """A row under the same key in both tables; the first is logged."""
    with paths.under("t1") as session:
        session.add(Note(id=1, body="of t1"))
    stranger = sa.create_engine(paths.engine.url)
    with stranger.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'another program'")
        connection.exec_driver_sql("INSERT INTO t2.note (id, body) VALUES (1, 'of t2')")
    stranger.dispose()


@pytest.mark.sampled(9)
@pytest.mark.parametrize("way", WAYS)
def test_another_table_of_the_name_is_refused(paths: Paths, way: str) -> None:
    fill(paths)
    with paths.refused(), paths.under("t2") as session:
        WAYS[way](session)
    with paths.under("t1") as session:
        WAYS[way](session)
    assert len(paths.tell()) > 1
    paths.assert_replays()


@pytest.mark.sampled(9)
@pytest.mark.parametrize("way", WAYS)
def test_the_path_is_changed_between_two_writes(paths: Paths, way: str) -> None:
    fill(paths)
    with paths.refused(), paths.under("t1") as session:
        session.add(Note(id=9, body="of t1"))
        session.flush()
        enter(session, "t2")
        WAYS[way](session)
    with paths.refused(), paths.under("t1") as session:
        session.get_one(Note, 1).body = "t1"
        session.flush()
        enter(session, "t2")
        WAYS[way](session)
        session.flush()
        enter(session, "t1")


def test_the_path_may_be_changed_after_a_write(paths: Paths) -> None:
    """To where the name means another table: what was written is known by then."""
    fill(paths)
    with paths.under("t1") as session:
        session.add(Note(id=2, body="of t1"))
        session.flush()
        enter(session, "t2")
        assert session.execute(sa.text("SELECT body FROM note")).scalars().all() == ["of t2"]
    with paths.under("t2") as session:
        enter(session, "t1")
        session.get_one(Note, 2).body = "again"
        session.flush()
        session.execute(sa.text("RESET search_path"))
    assert paths.tell()[1:] == ["CREATE note 2", "UPDATE note 2"]
    paths.assert_replays()


WAYS_TO_T2 = [
    "SELECT set_config('search_path', 't2', true)",
    "SET LOCAL SCHEMA 't2'",
    "CREATE TEMP TABLE note (id int PRIMARY KEY, body text, number int) ON COMMIT DROP",
    "DO $$ BEGIN SET LOCAL search_path = t2; END $$",
]


@pytest.mark.parametrize("statement", WAYS_TO_T2)
@pytest.mark.parametrize("first", [False, True], ids=["before", "between"])
def test_other_ways_to_another_table(plain: Paths, statement: str, first: bool) -> None:
    fill(plain)
    with plain.refused(), plain.under("t1") as session:
        if first:
            change_object(session)
            session.flush()
        session.execute(sa.text(statement))
        add_with_default(session)
        session.flush()
        session.execute(sa.text("SET LOCAL search_path = t1; DROP TABLE IF EXISTS pg_temp.note"))


def test_a_path_that_a_role_changes(plain: Paths) -> None:
    fill(plain)
    with plain.engine.connect() as connection:
        me = connection.exec_driver_sql("SELECT current_user").scalar_one()
    plain.execute(f'CREATE SCHEMA "{me}"', f'CREATE TABLE "{me}".note (LIKE t1.note INCLUDING ALL)')
    with plain.refused(), plain.sessions.begin() as session:
        session.execute(sa.text("SET LOCAL search_path = '$user', t1"))
        add(session)


def test_a_function_that_changes_the_path_is_noticed_at_commit(plain: Paths) -> None:
    fill(plain)
    plain.execute(
        "CREATE FUNCTION public.enter(name text) RETURNS void LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('search_path', name || ',public', true); END $$"
    )
    with plain.refused(), plain.under("t1") as session:
        session.execute(sa.text("SELECT public.enter('t2')"))
        add(session)
    with plain.refused(), plain.under("t1") as session:
        session.execute(sa.select(sa.func.public.enter("t2")))
        change_object(session)


def test_a_function_that_changes_the_path_and_back(plain: Paths) -> None:
    """Noticed where the server reports its search path: from PostgreSQL 18 on."""
    fill(plain)
    plain.execute(
        "CREATE FUNCTION public.enter(name text) RETURNS void LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('search_path', name || ',public', true); END $$"
    )
    with plain.engine.connect() as connection:
        reported = connection.dialect.server_version_info >= (18,)  # type: ignore[operator]

    def write() -> None:
        with plain.under("t1") as session:
            session.execute(sa.text("SELECT public.enter('t2')"))
            change_by_key(session)
            session.execute(sa.text("SELECT public.enter('t1')"))
            session.add(Note(id=5, body="of t1"))

    if not reported:
        pytest.skip("the server does not say when its search path changes")
    with plain.refused():
        write()


def test_what_a_savepoint_takes_back_is_not_compared(paths: Paths) -> None:
    fill(paths)
    with paths.under("t1") as session:
        change_object(session)
        with suppress(ZeroDivisionError), session.begin_nested():
            enter(session, "t2")
            session.execute(sa.insert(Note).values(id=4, body="of t2", number=1))
            raise ZeroDivisionError
    assert paths.tell()[1:] == ["UPDATE note 1"]
    assert paths.list_rows("t2") == [(1, "of t2")]
    paths.assert_replays()
    with paths.refused(), paths.under("t1") as session:
        change_object(session)
        with session.begin_nested():
            enter(session, "t2")
            session.execute(sa.insert(Note).values(id=4, body="of t2", number=1))
        enter(session, "t1")


def test_a_refusal_that_is_swallowed_still_stops_the_commit(plain: Paths) -> None:
    fill(plain)
    with plain.refused(), plain.under("t2") as session:
        add(session)
        session.flush()
        with pytest.raises(UnloggedWriteError):
            enter(session, "t1")
        with pytest.raises(UnloggedWriteError):
            enter(session, "t1")


def test_a_transaction_that_comes_to_nothing_is_compared_as_well(paths: Paths) -> None:
    fill(paths)

    def come_and_go(tenant: str) -> None:
        with paths.under(tenant) as session:
            note = Note(id=8, body="x", number=1)
            session.add(note)
            session.flush()
            session.delete(note)

    come_and_go("t1")
    with paths.refused():
        come_and_go("t2")
    assert paths.tell() == ["CREATE note 1"]


def test_a_bulk_statement_on_a_table_without_a_guard(engine: Engine) -> None:
    """What is left to guards is not seen where the table it really writes has none."""
    paths = open_paths(engine, ("t1",))
    fill(paths)
    with paths.refused(), paths.under("t2") as session:
        session.execute(sa.update(Note).where(Note.body != "").values(body="all"))
    with paths.under("t1") as session:
        session.execute(sa.update(Note).where(Note.body != "").values(body="all"))
    assert paths.tell()[1:] == ["UPDATE note 1"]
    paths.assert_replays()


@pytest.mark.parametrize("plan", ["text", "bulk", "cascade"])
def test_a_guard_tells_of_the_other_table(engine: Engine, plan: str) -> None:
    paths = open_paths(engine, ("t1", "t2"))
    fill(paths)
    statement: Any = {
        "text": sa.text("UPDATE note SET body = 'all'"),
        "bulk": sa.update(Note).where(Note.body != "").values(body="all"),
        "cascade": sa.text("DELETE FROM note"),
    }[plan]
    with paths.refused(), paths.under("t2") as session:
        session.execute(statement)


def test_schema_translate_map_is_refused_as_ever(paths: Paths) -> None:
    fill(paths)
    options = {"schema_translate_map": {None: "t2"}}
    with pytest.raises(NotCapturableError), paths.under("t1") as session:
        session.execute(sa.insert(Note).values(id=2, body="x"), execution_options=options)


# -- several engines, processes, and what was stored before ---------------------------------------


@pytest.fixture
def engines(database_url: URL) -> Iterator[dict[str, Engine]]:
    engines = {
        tenant: sa.create_engine(
            database_url, connect_args={"options": f"-csearch_path={tenant},public"}
        )
        for tenant in TENANTS
    }
    yield engines
    for engine in engines.values():
        engine.dispose()


@pytest.mark.parametrize("shared", [False, True], ids=["a log each", "one log"])
@pytest.mark.parametrize("guard", GUARDED)
def test_an_engine_for_each_tenant(
    engine: Engine, engines: dict[str, Engine], guard: str, shared: bool
) -> None:
    paths = open_paths(engine, GUARDED[guard])
    keyring = paths.log.keyring
    one = make_log(keyring)
    sessions = {tenant: sessionmaker(engines[tenant]) for tenant in TENANTS}
    for tenant in TENANTS:
        (one if shared else make_log(keyring)).attach(sessions[tenant])
    with sessions["t1"].begin() as session:
        session.add(Note(id=1, body="of t1"))
    for _ in range(2):
        with paths.refused(SchemaDriftError), sessions["t2"].begin() as session:
            session.add(Note(id=1, body="of t2"))
    with sessions["t1"].begin() as session:
        session.get_one(Note, 1).body = "again"
    assert paths.tell() == ["CREATE note 1", "UPDATE note 1"]
    paths.assert_replays()


def test_another_process_adopts_nothing_of_another_table(
    engine: Engine, engines: dict[str, Engine]
) -> None:
    paths = open_paths(engine, ())
    fill(paths)
    other = make_log(paths.log.keyring)
    with engines["t2"].connect() as connection, pytest.raises(SchemaDriftError, match="still"):
        other.adopt(connection)
    assert paths.tell() == ["CREATE note 1"]


@pytest.mark.parametrize(
    "move",
    [
        ["ALTER TABLE t1.note SET SCHEMA t3"],
        ["ALTER SCHEMA t1 RENAME TO t3"],
        ["CREATE TABLE t3.note (LIKE t1.note INCLUDING ALL)", "DROP TABLE t1.note"],
    ],
)
def test_a_table_that_was_moved_is_the_same(engine: Engine, move: list[str]) -> None:
    """The old name is gone: nothing else could be meant."""
    paths = open_paths(engine, ())
    with paths.under("t1") as session:
        session.add(Note(id=1, body="x"))
        session.flush()
        session.execute(sa.delete(Note).where(Note.id == 1))
    if "RENAME" not in move[0]:
        paths.execute("CREATE SCHEMA t3")
    paths.execute(*move)
    other = make_log(paths.log.keyring)
    sessions = sessionmaker(engine)
    other.attach(sessions)
    with sessions.begin() as session:
        enter(session, "t3")
        session.add(Note(id=2, body="moved"))
    assert "CREATE note 2" in paths.tell()


def test_the_first_write_stores_the_table_of_its_own_path(engine: Engine) -> None:
    """Types are stored on a connection apart, whose search path is another by itself."""
    paths = open_paths(engine, ())
    paths.execute("CREATE TABLE public.note (LIKE t1.note INCLUDING ALL)")
    with paths.under("t1") as session:
        session.add(Note(id=1, body="x"))
    with engine.connect() as connection:
        schemas = connection.exec_driver_sql("SELECT shape ->> 'schema' FROM oplog.oplog_type")
        assert schemas.scalars().all() == ["t1"]
    paths.assert_replays()


def test_a_table_that_was_replaced_is_found_by_the_next_transaction(plain: Paths) -> None:
    """By a process that runs on: the name means another table, under the same path."""
    fill(plain)
    plain.execute(
        "CREATE TABLE t1.fresh (LIKE t1.note INCLUDING ALL)",
        "INSERT INTO t1.fresh SELECT * FROM t1.note",
        "DROP TABLE t1.note",
        "ALTER TABLE t1.fresh RENAME TO note",
    )
    with pytest.raises(UnloggedWriteError), plain.under("t1") as session:
        change_object(session)
    # The database does not show what became of the rows: somebody has to say so.
    with pytest.raises(SchemaDriftError, match="replaced") as caught, plain.under("t1") as session:
        change_object(session)
    assert "op.replace_type('note'" in caught.value.hint
    with plain.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = t1, public")
        plain.log.replace_type(connection, "note", reason="rebuilt")
    with plain.under("t1") as session:
        change_object(session)
    assert plain.tell()[-1:] == ["UPDATE note 1"]
    plain.assert_replays()


# -- what it costs ------------------------------------------------------------------------------


def test_the_comparison_is_no_statement_of_its_own(paths: Paths) -> None:
    fill(paths)
    sent: list[str] = []
    event.listen(
        paths.engine, "before_cursor_execute", lambda *args: sent.append(args[2]), named=False
    )
    with paths.under("t1") as session:
        session.add(Note(id=2, body="x", number=1))
        session.flush()
        session.execute(sa.text("SELECT set_config('app.tenant', 't1', true)"))
        session.execute(sa.select(Note)).all()
        session.get_one(Note, 2).body = "y"
    assert [text for text in sent if "to_regclass" in text] == []


# -- asynchronously, and without a session --------------------------------------------------------


async def test_asynchronously(paths: Paths, database_url: URL) -> None:
    fill(paths)
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine)
    paths.log.attach(sessions)

    async def write(tenant: str) -> None:
        async with sessions.begin() as session:
            await session.run_sync(enter, tenant)
            await session.run_sync(add)

    with paths.refused():
        await write("t2")
    await write("t1")
    assert paths.tell()[1:] == ["CREATE note 2"]
    paths.assert_replays()
    await engine.dispose()


def test_on_a_connection_of_an_attached_engine(paths: Paths) -> None:
    fill(paths)
    paths.log.attach(paths.engine)

    def write(tenant: str) -> None:
        with paths.engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL search_path = {tenant}")
            connection.execute(sa.insert(Note).values(id=2, body="x", number=1))

    with paths.refused():
        write("t2")
    write("t1")
    assert paths.tell()[1:] == ["CREATE note 2"]
    paths.assert_replays()
