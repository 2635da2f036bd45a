"""Restores as of a moment before a table was created, into a database that has no such table."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Archive, Keyring, Oplog, TypeCatalog
from oplog.errors import SchemaDriftError
from tests.logged import track
from tests.postgres.archived import open_memory, publish

pytestmark = pytest.mark.postgres

Rows = list[tuple[int, str]]


def declare(*names: str) -> sa.MetaData:
    metadata = sa.MetaData()
    for name in names:
        columns = (sa.Column("id", sa.Integer, primary_key=True), sa.Column("note", sa.Text))
        sa.Table(name, metadata, *columns)
    return metadata


class Application:
    """One release, with the tables of its time, on one database."""

    def __init__(self, engine: Engine, keyring: Keyring, *names: str) -> None:
        self.engine = engine
        self.keyring = keyring
        self.metadata = declare(*names)
        self.log = Oplog(TypeCatalog.from_models(self.metadata), keyring=keyring)
        self.sessions = sessionmaker(engine)
        self.log.attach(self.sessions)

    def create(self, *names: str) -> None:
        tables = [self.metadata.tables[name] for name in names]
        self.metadata.create_all(self.engine, tables)
        track(self.engine, *tables)

    def migrate(self, *names: str) -> Application:
        """The next release, whose migration created the tables that are new."""
        self.log.detach(self.sessions)
        following = Application(self.engine, self.keyring, *self.metadata.tables, *names)
        following.create(*names)
        return following

    def insert(self, name: str, *rows: tuple[int, str]) -> int:
        """The position of the record."""
        with self.sessions.begin() as session:
            for key, note in rows:
                session.execute(self.metadata.tables[name].insert().values(id=key, note=note))
        with self.engine.connect() as connection:
            return max(entry.position for entry in self.log.read(connection))

    def read(self, name: str) -> Rows:
        with self.engine.connect() as connection:
            found = connection.execute(sa.select(self.metadata.tables[name]).order_by("id"))
            return [(row.id, row.note) for row in found]

    def restore(self, archive: Archive, through: int) -> None:
        with self.engine.connect() as connection:
            self.log.restore(archive, connection, through=through)

    def list_differences(self) -> list[str]:
        with self.engine.connect() as connection:
            return [str(one) for one in self.log.verify(connection).differences]


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.generate()


@pytest.fixture
def archive() -> Archive:
    return open_memory()


@pytest.fixture
def first(engine: Engine, keyring: Keyring) -> Application:
    app = Application(engine, keyring, "album")
    app.create("album")
    app.insert("album", (1, "one"))
    app.insert("album", (2, "two"))
    return app


@pytest.fixture
def target(spare_engine: Engine, keyring: Keyring) -> Application:
    """A database with the schema of then."""
    app = Application(spare_engine, keyring, "album")
    app.create("album")
    return app


def grow(first: Application) -> Application:
    """The next release: it writes into a table that is new, and goes on with the other."""
    second = first.migrate("track")
    second.insert("track", (7, "late"))
    second.insert("album", (3, "three"))
    return second


def find_end(app: Application) -> int:
    with app.engine.connect() as connection:
        return max(entry.position for entry in app.log.read(connection))


@pytest.mark.parametrize("snapshot", ["none", "before", "after"])
def test_the_schema_of_then_is_enough(
    first: Application, target: Application, archive: Archive, snapshot: str
) -> None:
    if snapshot == "before":
        first.log.snapshot(first.engine, archive)
    before = first.insert("album", (5, "five"))
    second = grow(first)
    publish(second.log, second.engine, archive)
    if snapshot == "after":
        second.log.snapshot(second.engine, archive)

    target.restore(archive, before)

    assert target.read("album") == [(1, "one"), (2, "two"), (5, "five")]
    assert target.list_differences() == []
    target.insert("album", (6, "six"))
    assert target.list_differences() == []


def test_the_table_may_be_created_again_later(
    first: Application, target: Application, archive: Archive
) -> None:
    before = find_end(first)
    second = grow(first)
    publish(second.log, second.engine, archive)
    target.restore(archive, before)

    later = target.migrate("track")
    later.insert("track", (7, "anew"))
    later.insert("track", (8, "more"))

    assert later.list_differences() == []
    with later.engine.begin() as connection:
        later.log.replay(connection, into="again")
        rows = connection.exec_driver_sql("SELECT id, note FROM again.track ORDER BY id").all()
    assert [tuple(row) for row in rows] == [(7, "anew"), (8, "more")]
    # What the first database wrote since is another branch.
    later.log.sync(later.engine, archive, fork="fork")
    assert later.log.check(archive).ok


@pytest.mark.parametrize("snapshot", [False, True])
def test_rows_of_a_table_that_is_missing_are_refused(
    first: Application, target: Application, archive: Archive, snapshot: bool
) -> None:
    second = grow(first)
    publish(second.log, second.engine, archive)
    if snapshot:
        second.log.snapshot(second.engine, archive)

    with pytest.raises(SchemaDriftError, match=r"public\.track is in the log") as caught:
        target.restore(archive, find_end(second))

    assert "migrate the empty database to revision 1 of type 'track'" in str(caught.value.hint)
    assert target.read("album") == []
    target.insert("album", (4, "an application is let in"))
    assert target.list_differences() == []


def test_without_a_position_a_table_that_is_missing_is_refused_before_anything_is_written(
    first: Application, target: Application, archive: Archive
) -> None:
    second = first.migrate("track")
    publish(second.log, second.engine, archive)
    second.insert("track", (7, "late"))
    publish(second.log, second.engine, archive)

    with (
        target.engine.connect() as connection,
        pytest.raises(SchemaDriftError, match=r"public\.track is in the log"),
    ):
        target.log.restore(archive, connection)
