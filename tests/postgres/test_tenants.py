"""One catalog for many schemas: each tenant's table is a type of its own.

A write goes to the type of the table that is really written, whatever chose it: the search path
of an engine, a connection or a transaction, or `schema_translate_map`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog, TypeCatalog, open_archive
from oplog.errors import (
    ConfigurationError,
    NotCapturableError,
    SchemaDriftError,
    UnloggedWriteError,
)
from oplog.postgres.quoting import qualify
from oplog.schema.tables import track_statements
from oplog.testing import assert_logged
from tests.postgres.tenants import (
    TENANTS,
    Base,
    Line,
    Note,
    Office,
    Plan,
    create_tables,
    enter,
    make_office,
)
from tests.support import administer, install_log

pytestmark = pytest.mark.postgres

Enter = Callable[[Office, str], AbstractContextManager[Session]]
WAYS: dict[str, Enter] = {"path": Office.under, "map": Office.translated}


@pytest.fixture(params=[False, True], ids=["plain", "guarded"])
def office(engine: Engine, request: pytest.FixtureRequest) -> Office:
    return make_office(engine, guarded=request.param)


@pytest.fixture
def guarded(engine: Engine) -> Office:
    return make_office(engine, guarded=True)


@pytest.fixture
def plain(engine: Engine) -> Office:
    return make_office(engine, guarded=False)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Enter:
    return WAYS[request.param]


def test_one_key_in_two_schemas_is_two_aggregates(office: Office, way: Enter) -> None:
    for tenant in TENANTS:
        with way(office, tenant) as session:
            session.add(Note(id=1, body=f"of {tenant}"))
    for tenant in TENANTS:
        with way(office, tenant) as session:
            session.get_one(Note, 1).body += "!"
    with way(office, "t2") as session:
        session.delete(session.get_one(Note, 1))
    told = [(e.aggregate, e.version, o.kind.name) for e in office.read() for o in e.operations]
    assert told == [
        ("t1.note/1", 1, "CREATE"),
        ("t2.note/1", 1, "CREATE"),
        ("t1.note/1", 2, "UPDATE"),
        ("t2.note/1", 2, "UPDATE"),
        ("t2.note/1", 3, "DELETE"),
    ]
    assert office.list_rows("t1") == [(1, "of t1!")]
    office.assert_replays()


def test_a_key_that_the_database_makes_and_a_table_for_all(office: Office, way: Enter) -> None:
    with way(office, "t2") as session:
        note = Note(body="x", plan_id=1)
        session.add(Plan(id=1, name="all"))
        session.flush()
        session.add(note)
        session.flush()
        session.add(Line(note_id=note.id, text="y"))
    told = {(e.aggregate, o.type_name) for e in office.read() for o in e.operations}
    assert told == {
        ("common.plan/1", "common.plan"),
        ("t2.note/1", "t2.note"),
        ("t2.note/1", "t2.line"),
    }
    office.assert_replays()


def test_core_and_several_rows(office: Office, way: Enter) -> None:
    for tenant in TENANTS:
        with way(office, tenant) as session:
            session.execute(sa.insert(Note), [{"id": n, "body": tenant} for n in range(1, 4)])
            session.execute(sa.update(Note).where(Note.id == 2).values(body="two"))
            session.execute(sa.delete(Note).where(Note.id == 3))
    assert office.tell() == [f"CREATE {tenant}.note {n}" for tenant in TENANTS for n in (1, 2)]
    office.assert_replays()


def test_several_tenants_in_one_transaction(office: Office) -> None:
    with office.sessions.begin() as session:
        for n, tenant in enumerate((*TENANTS, *TENANTS), 1):
            enter(session, tenant)
            session.add(Note(id=n, body=tenant))
            session.flush()
    assert office.tell() == [
        "CREATE t1.note 1",
        "CREATE t1.note 3",
        "CREATE t2.note 2",
        "CREATE t2.note 4",
    ]
    assert (len(office.list_rows("t1")), len(office.list_rows("t2"))) == (2, 2)
    office.assert_replays()


def test_a_savepoint_takes_its_search_path_away(office: Office) -> None:
    with office.under("t1") as session:
        session.add(Note(id=1, body="x"))
        session.flush()
        nested = session.begin_nested()
        enter(session, "t2")
        session.add(Note(id=2, body="gone"))
        session.flush()
        nested.rollback()
        session.add(Note(id=3, body="y"))
    assert office.tell() == ["CREATE t1.note 1", "CREATE t1.note 3"]
    office.assert_replays()


def test_a_function_that_sets_the_search_path(office: Office) -> None:
    office.execute(
        "CREATE FUNCTION public.enter(name text) RETURNS void LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('search_path', name || ',public', true); END $$"
    )
    with office.sessions.begin() as session:
        for n, tenant in enumerate((*TENANTS, *TENANTS), 1):
            session.execute(sa.select(sa.func.public.enter(tenant)))
            session.add(Note(id=n, body=tenant))
            session.flush()
    assert [len(office.list_rows(tenant)) for tenant in TENANTS] == [2, 2]
    office.assert_replays()


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guarded"])
def test_an_engine_for_each_tenant(engine: Engine, database_url: URL, guard: bool) -> None:
    office = make_office(engine, guarded=guard)
    for tenant in TENANTS:
        options = {"options": f"-csearch_path={tenant}"}
        own = sa.create_engine(database_url, connect_args=options)
        sessions = sessionmaker(own)
        office.log.attach(sessions)
        with sessions.begin() as session:
            session.add(Note(id=1, body=tenant))
        with own.connect() as connection:
            changes = office.log.history(connection, Note, 1)
            assert [dict(change.fields)["body"] for change in changes] == [tenant]
            assert office.log.as_of(connection, Note, key=1, at=changes[0].position) is not None
            assert office.log.verify(connection).ok
        own.dispose()
    assert office.tell() == ["CREATE t1.note 1", "CREATE t2.note 1"]
    office.assert_replays()


def test_an_engine_that_translates(office: Office) -> None:
    for tenant in TENANTS:
        own = office.engine.execution_options(schema_translate_map={None: tenant})
        sessions = sessionmaker(own)
        office.log.attach(sessions)
        with sessions.begin() as session:
            session.add(Note(id=1, body=tenant))
        with own.connect() as connection:
            (change,) = office.log.history(connection, Note, 1)
            assert dict(change.fields)["body"] == tenant
    assert office.tell() == ["CREATE t1.note 1", "CREATE t2.note 1"]


def test_a_model_without_a_tenant_is_asked_for(plain: Office) -> None:
    with plain.under("t1") as session:
        session.add(Note(id=1, body="x"))
    with plain.engine.connect() as connection:
        with pytest.raises(ConfigurationError, match=r"t1\.note, t2\.note"):
            plain.log.history(connection, Note, 1)
        assert len(plain.log.history(connection, "t1.note", 1)) == 1
        assert plain.log.history(connection, "t2.note", 1) == []


def test_history_of_another_table_of_the_name_is_refused(engine: Engine) -> None:
    """One catalog for one schema, asked through a search path that means another one."""
    office = make_office(engine, guarded=False)
    office.log.detach(office.sessions)
    alone = Oplog(TypeCatalog.from_models(Base), keyring=office.log.keyring)
    sessions = sessionmaker(engine)
    alone.attach(sessions)
    with sessions.begin() as session:
        enter(session, "t1")
        session.add(Note(id=1, body="of t1"))
    with engine.connect() as connection:
        for path, count in (("t1", 1), ("public", 1), ("t2", 0)):
            connection.exec_driver_sql(f"SET LOCAL search_path = {path}")
            assert len(alone.history(connection, "note", 1)) == 1
            if count:
                assert len(alone.history(connection, Note, 1)) == 1
                continue
            with pytest.raises(SchemaDriftError, match=r"'note'"):
                alone.history(connection, Note, 1)
            with pytest.raises(SchemaDriftError, match=r"'note'"):
                alone.as_of(connection, Note, key=1, at=1)


def test_an_attached_engine_without_a_session(office: Office) -> None:
    office.log.attach(office.engine)
    for tenant in TENANTS:
        own = office.engine.execution_options(schema_translate_map={None: tenant})
        with own.begin() as connection:
            connection.execute(sa.insert(Note).values(id=1, body=tenant))
        with office.engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL search_path = {tenant}")
            connection.execute(sa.update(Note).where(Note.id == 1).values(body="x"))
    assert [told.split()[1] for told in office.tell()] == ["t1.note", "t1.note"] + ["t2.note"] * 2
    office.assert_replays()


def test_a_migration_writes_rows_of_a_tenant(guarded: Office) -> None:
    guarded.log.attach(guarded.engine)
    with guarded.engine.begin() as connection, guarded.log.migrating(connection):
        connection.exec_driver_sql("SET LOCAL search_path = t2")
        connection.execute(sa.insert(Note).values(id=1, body="x"))
        connection.exec_driver_sql("ALTER TABLE t2.note ADD COLUMN more int DEFAULT 1")
        connection.exec_driver_sql("UPDATE note SET more = 2")
    assert guarded.tell() == ["CREATE t2.note 1", "UPDATE t2.note 1"]


def test_a_migration_refuses_a_tenants_table_without_a_guard(plain: Office) -> None:
    plain.log.attach(plain.engine)
    plain.execute(*track_statements(qualify(["note"], "t1")))
    translated = plain.engine.execution_options(schema_translate_map={None: "t2"})
    with (
        translated.begin() as connection,
        plain.log.migrating(connection),
        pytest.raises(NotCapturableError, match="no guard"),
    ):
        connection.execute(sa.insert(Note).values(id=1, body="x"))
    assert plain.list_rows("t2") == []


def test_an_assertion_is_about_one_tenant(plain: Office) -> None:
    with plain.under("t1") as session:
        session.add(Note(id=1, body="x"))
    with plain.engine.connect() as connection:
        assert_logged(plain.log, connection, "t1.note", key=1)
        with pytest.raises(ConfigurationError, match="several schemas"):
            assert_logged(plain.log, connection, Note, key=1)
        connection.exec_driver_sql("SET LOCAL search_path = t2")
        with pytest.raises(AssertionError, match="not logged"):
            assert_logged(plain.log, connection, Note, key=1)


# -- what is not known ----------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guarded"])
def test_a_schema_that_the_catalog_does_not_name(engine: Engine, way: Enter, guard: bool) -> None:
    office = make_office(engine, guarded=guard, schemas=("t1",))
    with way(office, "t1") as session:
        session.add(Note(id=1, body="x"))
    with (
        pytest.raises((NotCapturableError, UnloggedWriteError), match="not sent") as caught,
        way(office, "t2") as session,
    ):
        session.add(Note(id=1, body="x"))
    assert "schemas=[" in caught.value.hint
    assert office.list_rows("t2") == []
    office.assert_replays()


def test_a_name_that_means_nothing_is_the_databases_own_error(plain: Office) -> None:
    with pytest.raises(sa.exc.ProgrammingError, match="does not exist"), plain.under("t3") as other:
        other.add(Note(id=1, body="x"))


def test_a_temporary_table_in_the_way(plain: Office) -> None:
    with plain.under("t1") as session:
        session.add(Note(id=1, body="x"))
        session.flush()
        session.execute(sa.text("CREATE TEMP TABLE note (LIKE t1.note) ON COMMIT DROP"))
        session.add(Note(id=2, body="x"))
        with pytest.raises(UnloggedWriteError, match="pg_temp"):
            session.flush()
        session.rollback()
    assert plain.tell() == []


def test_a_compiled_statement_serves_other_maps(plain: Office) -> None:
    """The cached form of a statement is one for all of them."""
    statement = sa.insert(Note).values(id=1, body="x")
    for tenant in (*TENANTS, "t3"):
        with plain.engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS t3")
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t3.note (LIKE t1.note)")
        options = {"schema_translate_map": {None: tenant}}
        if tenant == "t3":
            with pytest.raises(NotCapturableError), plain.sessions.begin() as session:
                session.execute(statement, execution_options=options)
            continue
        with plain.sessions.begin() as session:
            session.execute(statement, execution_options=options)
    assert plain.tell() == ["CREATE t1.note 1", "CREATE t2.note 1"]
    assert plain.list_rows("t3") == []


# -- guards --------------------------------------------------------------------------------------


def change_text(session: Session) -> Any:
    return session.execute(sa.text("UPDATE note SET body = body || '!'"))


def change_many(session: Session) -> Any:
    return session.execute(sa.update(Note).where(Note.body != "").values(body=Note.body + "!"))


def delete_with_lines(session: Session) -> Any:
    return session.execute(sa.text("DELETE FROM note WHERE id = 1"))


@pytest.mark.parametrize("work", [change_text, change_many, delete_with_lines])
def test_what_only_guards_see(guarded: Office, work: Callable[[Session], Any]) -> None:
    for tenant in TENANTS:
        with guarded.under(tenant) as session:
            session.add(Note(id=1, body=tenant))
            session.flush()
            session.add(Line(id=1, note_id=1, text="x"))
    with guarded.under("t2") as session:
        work(session)
    assert guarded.list_rows("t1") == [(1, "t1")]
    assert all("t2." in told for told in guarded.tell()[4:])
    assert len(guarded.tell()) > 4
    guarded.assert_replays()


def test_bulk_statements_under_a_map(guarded: Office) -> None:
    for tenant in TENANTS:
        with guarded.translated(tenant) as session:
            session.add(Note(id=1, body=tenant))
            session.flush()
            change_many(session)
    assert [guarded.list_rows(tenant) for tenant in TENANTS] == [[(1, "t1!")], [(1, "t2!")]]
    guarded.assert_replays()


# -- the rest of the log --------------------------------------------------------------------------


def test_adopt_replay_and_one_tenant_again(plain: Office) -> None:
    for tenant in TENANTS:
        plain.execute(f"INSERT INTO {tenant}.note (id, body) VALUES (1, '{tenant}')")
    with plain.engine.connect() as connection:
        assert plain.log.adopt(connection).rows == 2
    plain.assert_replays()
    with plain.engine.begin() as connection:
        plain.log.replay(connection, into="replayed")
        rows = connection.exec_driver_sql('SELECT body FROM replayed."t2.note"')
        assert rows.scalars().all() == ["t2"]


def test_restore(office: Office, spare_engine: Engine, way: Enter) -> None:
    for tenant in TENANTS:
        with way(office, tenant) as session:
            session.add_all(Note(id=n, body=tenant) for n in (1, 2))
    archive = open_archive("memory://tenants", single_writer=True)
    office.log.sync(office.engine, archive)
    create_tables(spare_engine, guarded=False)
    with spare_engine.connect() as connection:
        assert office.log.restore(archive, connection).rows == 4
        assert office.log.verify(connection).ok


def test_one_tenant_as_it_was(office: Office) -> None:
    """The whole is rebuilt aside, and the rows of one tenant are written again, logged."""
    for tenant in TENANTS:
        with office.under(tenant) as session:
            session.add_all(Note(id=n, body=tenant) for n in (1, 2))
    position = office.read()[-1].position
    for tenant in TENANTS:
        with office.under(tenant) as session:
            session.get_one(Note, 1).body = "spoiled"
            session.delete(session.get_one(Note, 2))
    with office.sessions.begin() as session:
        office.log.replay(session.connection(), into="replayed", through=position)
        enter(session, "t2")
        for row in session.execute(sa.text('SELECT * FROM replayed."t2.note"')):
            session.merge(Note(**row._mapping))
    assert office.list_rows("t1") == [(1, "spoiled")]
    assert office.list_rows("t2") == [(1, "t2"), (2, "t2")]
    assert sorted(office.tell()[-2:]) == ["CREATE t2.note 2", "UPDATE t2.note 1"]
    office.assert_replays()


def test_types_in_the_schemas_of_tenants(office: Office) -> None:
    """No search path spells them otherwise: nothing has changed for the next process."""
    for n, tenant in enumerate((*TENANTS, *TENANTS), 1):
        log = Oplog(office.log.catalog, keyring=office.log.keyring)
        office.log.detach(office.sessions) if n == 1 else None
        log.attach(office.sessions)
        with office.under(tenant) as session:
            session.add(Note(id=n, body="x", mood="good"))
        with office.under(tenant) as session:
            session.get_one(Note, n).mood = "bad"
        with office.sessions.begin() as session:
            enter(session, tenant)
            log.note_changes(session.connection())
        log.detach(office.sessions)
    with office.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT type_name, max(revision) FROM oplog.oplog_type GROUP BY 1"
        )
        assert {revision for _, revision in rows} == {1}
        assert office.log.check_types(connection).ok
    assert len(office.tell()) == 8
    office.assert_replays()


def test_doctor_and_types_know_each_tenant(guarded: Office) -> None:
    with guarded.under("t1") as session:
        session.add(Note(id=1, body="x"))
    with guarded.engine.connect() as connection:
        assert guarded.log.check_types(connection).ok
        found = [f for f in guarded.log.diagnose(connection) if f.what.startswith("guard")]
    assert {f.what for f in found} <= {"guard-undeclared"}


def test_a_log_that_was_of_one_schema_goes_on(engine: Engine, database_url: URL) -> None:
    """The tables are the same, so their types keep their names in the log."""
    office = make_office(engine, guarded=False)
    office.log.detach(office.sessions)
    alone = Oplog(TypeCatalog.from_models(Base), keyring=office.log.keyring)
    options = {"options": "-csearch_path=t1"}
    own = sa.create_engine(database_url, connect_args=options)
    sessions = sessionmaker(own)
    alone.attach(sessions)
    with sessions.begin() as session:
        session.add(Note(id=1, body="alone"))
    own.dispose()
    office.log.attach(office.sessions)
    for tenant in TENANTS:
        with office.under(tenant) as session:
            session.add(Note(id=2, body=tenant))
    assert office.tell() == ["CREATE note 1", "CREATE note 2", "CREATE t2.note 2"]
    office.assert_replays()


async def test_asynchronously(office: Office, database_url: URL) -> None:
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine)
    office.log.attach(sessions)
    for tenant in TENANTS:
        async with sessions.begin() as session:
            await session.execute(sa.text(f"SET LOCAL search_path = {tenant}"))
            session.add(Note(id=1, body=tenant))
        async with sessions.begin() as session:
            options = {"schema_translate_map": {None: tenant}}
            await session.connection(execution_options=options)
            (await session.get_one(Note, 1)).body += "!"
    await engine.dispose()
    assert office.tell() == [
        f"{kind} {tenant}.note 1" for tenant in TENANTS for kind in ("CREATE", "UPDATE")
    ]
    office.assert_replays()


@pytest.fixture
def other_engine(database_url: URL) -> Iterator[Engine]:
    engine = sa.create_engine(database_url)
    yield engine
    engine.dispose()


def test_a_tenant_that_comes_later(guarded: Office, other_engine: Engine) -> None:
    """A new catalog at start, as after any migration."""
    with guarded.under("t1") as session:
        session.add(Note(id=1, body="x"))
    with other_engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA t3")
        Note.metadata.create_all(connection.execution_options(schema_translate_map={None: "t3"}))
    catalog = TypeCatalog.from_models(
        Base, schemas=(*TENANTS, "t3"), aggregates={"line": "note/{note_id}"}
    )
    later = Oplog(catalog, keyring=guarded.log.keyring)
    sessions = sessionmaker(other_engine)
    later.attach(sessions)
    with sessions.begin() as session:
        enter(session, "t3")
        session.add(Note(id=1, body="new"))
    assert guarded.tell() == ["CREATE t1.note 1", "CREATE t3.note 1"]
    with other_engine.connect() as connection:
        assert later.verify(connection).ok


@contextmanager
def open_older(server: URL, *, guarded: bool) -> Iterator[Office]:
    url = server.set(database=f"oplog_test_{uuid4().hex[:12]}")
    administer(server, f"CREATE DATABASE {url.database}")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        install_log(connection)
    yield make_office(engine, guarded=guarded)
    engine.dispose()
    administer(server, f"DROP DATABASE {url.database} WITH (FORCE)")


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guarded"])
@pytest.mark.parametrize(
    "behaviour",
    [
        test_several_tenants_in_one_transaction,
        test_a_savepoint_takes_its_search_path_away,
        test_a_function_that_sets_the_search_path,
    ],
)
def test_a_server_that_does_not_report_the_path(
    older_server_url: URL, guard: bool, behaviour: Callable[[Office], None]
) -> None:
    with open_older(older_server_url, guarded=guard) as office:
        behaviour(office)


@pytest.mark.parametrize("work", [change_text, change_many, delete_with_lines])
def test_what_only_guards_see_there(older_server_url: URL, work: Callable[[Session], Any]) -> None:
    with open_older(older_server_url, guarded=True) as office:
        test_what_only_guards_see(office, work)


def test_without_a_guard_it_is_refused_there_as_well(older_server_url: URL) -> None:
    with (
        open_older(older_server_url, guarded=False) as office,
        pytest.raises(NotCapturableError),
        office.under("t1") as session,
    ):
        change_many(session)
