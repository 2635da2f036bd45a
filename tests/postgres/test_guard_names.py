"""Guards know a table by its identity: names may be odd, doubled or in the way."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import NotCapturableError, UnloggedWriteError
from oplog.postgres.quoting import (
    qualify,
)
from oplog.schema.tables import (
    create_statements,
    track_statements,
)
from tests.logged import LoggedDatabase, open_logged, track
from tests.models.bank import AGGREGATES, Account, Base

pytestmark = pytest.mark.postgres

ODD = (
    'a "b" c',
    "percent %s %(x)s",
    "colon :x; DROP",
    "*/ comment /* in",
    "ünïcode 表 table",
    "n" * 63,
    "back\\slash'quote",
)


def make_tables(*names: str, schema: str | None = None) -> sa.MetaData:
    metadata = sa.MetaData()
    for name in names:
        sa.Table(
            name,
            metadata,
            sa.Column(f"key of {name}"[:40], sa.Integer, primary_key=True),
            sa.Column("gröup {odd}"[:11], sa.Text),
            sa.Column("v", sa.Text),
            schema=schema,
        )
    return metadata


@pytest.mark.parametrize("name", ODD)
def test_odd_names(engine: Engine, name: str) -> None:
    metadata = make_tables(name)
    db = open_logged(engine, metadata, guarded=True, aggregates={name: "constant"})
    (table,) = metadata.tables.values()
    key, group, value = table.columns
    with db.sessions.begin() as session:
        session.execute(table.insert(), [{key.name: n, "v": "x"} for n in (1, 2, 3)])
        session.execute(table.update().values({group: "g" + value}))
        session.execute(table.update().where(key == 1).values(v="y"))
        session.execute(table.delete().where(value == "x", key > 2))
    assert len(db.tell()) == 2
    db.assert_replays()


def test_two_schemas_with_the_same_table(engine: Engine) -> None:
    metadata = sa.MetaData()
    for schema in (None, "other", "third"):
        sa.Table(
            "thing",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("v", sa.Text),
            schema=schema,
        )
    with engine.begin() as connection:
        for schema in ("other", "third"):
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    db = open_logged(
        engine, metadata, guarded=True, untracked={"third.thing": "shows that it may be"}
    )
    with db.sessions.begin() as session:
        for table in metadata.tables.values():
            session.execute(table.insert().values(id=1, v="x"))
        session.execute(sa.text("UPDATE other.thing SET v = 'y'; UPDATE third.thing SET v = 'z'"))
    assert db.tell() == ["CREATE other.thing 1", "CREATE thing 1"]
    db.assert_replays()
    # A translated statement writes another table than the one in the catalog.
    with db.sessions() as session:
        session.connection(execution_options={"schema_translate_map": {None: "third"}})
        with pytest.raises(NotCapturableError, match="schema_translate_map"):
            session.execute(metadata.tables["thing"].update().values(v="w"))


def add_behind(db: LoggedDatabase, statement: str) -> None:
    with db.sessions.begin() as session:
        session.execute(sa.text(statement))
        session.add(Account(id=1, owner="x", balance=1))


def test_a_temporary_table_of_the_same_name(engine: Engine) -> None:
    db = open_logged(engine, Base, guarded=True, aggregates=AGGREGATES)
    temporary = "CREATE TEMP TABLE account (LIKE account INCLUDING ALL) ON COMMIT DROP"
    # Bound in the transaction that has it: the table in the way is not the tracked one.
    with pytest.raises(NotCapturableError, match="temporary"):
        add_behind(db, temporary)
    with db.sessions.begin() as session:
        session.add(Account(id=2, owner="y", balance=1))
    # Bound before: what the session announces and records never reaches the tracked table.
    with pytest.raises(UnloggedWriteError, match="other changes"):
        add_behind(db, temporary)
    with db.sessions.begin() as session:
        session.execute(sa.text(temporary))
        session.execute(sa.text("INSERT INTO account VALUES (1, 'x', 1)"))
    assert db.tell() == ["CREATE account 2"]
    db.assert_replays()


def test_table_inheritance_is_refused(engine: Engine) -> None:
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    db.execute("CREATE TABLE special () INHERITS (account)")
    with pytest.raises(NotCapturableError, match="inheritance"), db.sessions.begin() as session:
        session.add(Account(id=1, owner="x", balance=1))


def test_another_table_object_of_the_same_name(engine: Engine) -> None:
    db = open_logged(engine, Base, guarded=True, aggregates=AGGREGATES)
    namesake = sa.Table("account", sa.MetaData(), autoload_with=engine)
    with db.sessions.begin() as session:
        session.execute(namesake.insert().values(owner="x", balance=1))
        session.execute(namesake.update().values(note="n"))
    assert db.tell() == ["CREATE account 1"]
    db.assert_replays()


def test_a_guarded_table_that_the_catalog_lacks(engine: Engine) -> None:
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    stranger = sa.Table("stranger", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    stranger.create(engine)
    track(engine, stranger)
    with pytest.raises(UnloggedWriteError, match="catalog"), db.sessions.begin() as session:
        session.execute(stranger.insert().values(id=1))
    db.assert_pool_is_clean()


def test_two_logs_guard_the_same_table(engine: Engine) -> None:
    """Each has its own triggers, settings, announcements and idea of what is certain."""
    db = open_logged(engine, Base, guarded=True, aggregates=AGGREGATES)
    tables: dict[str, sa.Table] = dict(Base.metadata.tables)
    with engine.begin() as connection:
        for statement in (
            *create_statements(schema="Second 'log'"),
            *track_statements(qualify(tables, None), schema="Second 'log'"),
        ):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    catalog = TypeCatalog.from_models(Base, aggregates={"account": "owner/{owner}"})
    second = Oplog(catalog, keyring=Keyring.generate(), schema="Second 'log'")
    db.log.refresh()
    second.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add_all([Account(id=n, owner="ada", balance=n) for n in (1, 2)])
        session.flush()
        session.get_one(Account, 1).owner = "bob"
        session.execute(sa.text("UPDATE account SET note = 'n' WHERE id = 2"))
    with db.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
    assert {r.aggregate for r in second.receipts(session)} == {"owner/bob"}
    second_db = LoggedDatabase(engine, second, sessionmaker(engine))
    for one in (db, second_db):
        one.assert_replays()
    second.detach(db.sessions)
    with pytest.raises(UnloggedWriteError), db.sessions.begin() as session:
        session.execute(sa.delete(Account))


def test_settings_of_the_session_stay_as_they_were(engine: Engine) -> None:
    db = open_logged(engine, Base, guarded=True, aggregates=AGGREGATES)
    chosen: dict[str, Any] = {"datestyle": "SQL, DMY", "timezone": "Asia/Tokyo"}
    at_commit: dict[str, Any] = {}

    def look(session: Session) -> None:
        # After the log's own listener: the rows were read, deferred triggers are still to come.
        for name in chosen:
            at_commit[name] = session.execute(sa.text(f"SHOW {name}")).scalar_one()

    sa.event.listen(db.sessions, "before_commit", look)
    with db.sessions.begin() as session:
        for name, value in chosen.items():
            session.execute(sa.text(f"SET LOCAL {name} = '{value}'"))
        session.execute(sa.text("INSERT INTO account (owner, balance) VALUES ('x', 1)"))
        for name, value in chosen.items():
            assert session.execute(sa.text(f"SHOW {name}")).scalar_one() == value
    assert at_commit == chosen
    db.assert_replays()
