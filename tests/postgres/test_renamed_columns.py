"""A column's name that comes to mean another column: rows are read by what the column was."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Archive, Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, SchemaDriftError
from oplog.recovery import follow_log
from tests.databases import fill_database
from tests.kept import KeptLog, open_log
from tests.logged import track
from tests.models.messages import make_message
from tests.postgres.archived import open_memory

pytestmark = pytest.mark.postgres

Row = dict[str, Any]


def declare(*columns: str) -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table(
        "acct",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.Integer) for name in columns),
    )
    return metadata


class Release:
    """A version of the application: its models, its log, and sessions on a database."""

    def __init__(self, engine: Engine, keyring: Keyring, *columns: str) -> None:
        self.columns = columns
        self.metadata = declare(*columns)
        self.catalog = TypeCatalog.from_models(self.metadata)
        self.engine = engine
        self.keyring = keyring
        self.log = Oplog(self.catalog, keyring=keyring)
        self.sessions = sessionmaker(engine)
        self.log.attach(self.sessions)

    @property
    def table(self) -> sa.Table:
        return self.metadata.tables["acct"]

    def create(self) -> None:
        fill_database(self.engine, (Release, self.columns), self._create)

    def _create(self, engine: Engine) -> None:
        self.metadata.create_all(engine)
        track(engine, self.table)

    def insert(self, *rows: tuple[int, ...]) -> None:
        with self.sessions.begin() as session:
            for row in rows:
                values = dict(zip(("id", *self.columns), row, strict=True))
                session.execute(self.table.insert().values(values))

    def delete(self, key: int) -> None:
        with self.sessions.begin() as session:
            session.execute(self.table.delete().where(self.table.c.id == key))

    def migrate(self, ddl: str, *columns: str) -> Release:
        """The next version, after `ddl` was run."""
        self.log.detach(self.sessions)
        run(self.engine, *ddl.split(";"))
        return Release(self.engine, self.keyring, *columns)

    def read(self, schema: str = "public") -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql(
                f"SELECT {', '.join(('id', *self.columns))} FROM {schema}.acct ORDER BY id"
            )
            return [tuple(row) for row in rows]

    def replay(self, **options: Any) -> list[tuple[Any, ...]]:
        with self.engine.begin() as connection:
            self.log.replay(connection, into="again", **options)
        return self.read("again")

    def note(self) -> None:
        """What `oplog types sync` does."""
        with self.engine.begin() as connection:
            self.log.store_types(connection)

    def adopt_again(self) -> None:
        with self.engine.connect() as connection:
            self.log.adopt(connection, again=True)

    def verify(self) -> bool:
        with self.engine.connect() as connection:
            return self.log.verify(connection).ok

    def diagnose(self) -> list[str]:
        with self.engine.connect() as connection:
            found = self.log.diagnose(connection)
        # Not "setting": the server of the tests runs without fsync.
        return [f.what for f in found if f.severity == "problem" and f.what != "setting"]

    def restore(self, archive: Archive, **options: Any) -> None:
        with self.engine.connect() as connection:
            self.log.restore(archive, connection, **options)

    def find_position(self) -> int:
        """The highest position so far."""
        with self.engine.connect() as connection:
            return max(entry.position for entry in self.log.read(connection))


class Registered(Release):
    """One with a compiled message, whose revisions the application counts itself."""

    def __init__(self, engine: Engine, keyring: Keyring, *columns: str) -> None:
        super().__init__(engine, keyring, *columns)
        self.log.detach(self.sessions)
        fields = {name: (n, "int64") for n, name in enumerate(("id", *columns), 1)}
        message = make_message("shop.Acct", fields)
        self.catalog.register("acct", self.table, message=message, aggregate="acct/{id}")
        self.log.attach(self.sessions)


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.generate()


@pytest.fixture
def first(engine: Engine, keyring: Keyring) -> Release:
    release = Release(engine, keyring, "a", "b")
    release.create()
    release.insert((1, 11, 12), (2, 21, 22))
    return release


READD = "ALTER TABLE acct DROP COLUMN a; ALTER TABLE acct ADD COLUMN a int"
REPLACE = (
    "CREATE TABLE acct2 AS SELECT id, a, b FROM acct WHERE id = 1; DROP TABLE acct;"
    "ALTER TABLE acct2 RENAME TO acct; ALTER TABLE acct ADD PRIMARY KEY (id)"
)
SWAP = (
    "ALTER TABLE acct RENAME a TO t; ALTER TABLE acct RENAME b TO a;ALTER TABLE acct RENAME t TO b"
)
CHANGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "renamed": ("ALTER TABLE acct RENAME a TO z", ("z", "b")),
    "added again": (READD, ("b", "a")),
    "added again with a default": (f"{READD} NOT NULL DEFAULT 0", ("b", "a")),
    "names swapped": (SWAP, ("b", "a")),
    "renamed, and another column of its name": (
        "ALTER TABLE acct RENAME a TO z; ALTER TABLE acct ADD COLUMN a int",
        ("z", "b", "a"),
    ),
}
every_change = pytest.mark.parametrize("change", CHANGES)


def change_columns(first: Release, change: str) -> Release:
    """The next release, which has written a row already."""
    ddl, columns = CHANGES[change]
    release = first.migrate(ddl, *columns)
    release.insert((3, *(30 + n for n in range(len(columns)))))
    return release


@every_change
def test_rows_of_before_are_read_by_what_their_columns_were(first: Release, change: str) -> None:
    before = first.find_position()
    release = change_columns(first, change)
    assert release.verify()
    assert release.replay() == release.read()
    first.replay(through=before)
    assert first.read("again") == [(1, 11, 12), (2, 21, 22)]
    assert release.diagnose() == []
    release.insert((4, *(40 + n for n in range(len(release.columns)))))
    release.delete(3)
    assert release.verify()
    assert release.replay() == release.read()


def test_it_is_worked_out_before_anybody_wrote(first: Release) -> None:
    release = first.migrate(READD, "b", "a")
    with release.engine.connect() as connection:
        report = release.log.verify(connection)
    assert (report.ok, report.unnoted) == (True, ("acct",))
    # Nothing in the log says so yet.
    with first.engine.begin() as connection:
        first.log.replay(connection, into="again")
    assert first.read("again") == [(1, 11, 12), (2, 21, 22)]


@pytest.mark.sampled(4)
@every_change
@pytest.mark.parametrize("early", [False, True], ids=["no early snapshot", "early snapshot"])
@pytest.mark.parametrize("late", [False, True], ids=["no late snapshot", "late snapshot"])
def test_they_are_restored(
    first: Release, spare_engine: Engine, change: str, early: bool, late: bool
) -> None:
    archive = open_memory()
    if early:
        first.log.snapshot(first.engine, archive)
    release = change_columns(first, change)
    release.log.sync(release.engine, archive)
    if late:
        assert release.log.snapshot(release.engine, archive).taken
    release.delete(3)
    release.log.sync(release.engine, archive)
    assert release.log.check(archive, release.engine).problems == ()
    assert release.log.check(archive).problems == ()
    target = Release(spare_engine, release.keyring, *release.columns)
    target.create()
    target.restore(archive)
    assert target.read() == release.read()
    assert target.verify()


def test_through_a_position_before_the_rename(first: Release, spare_engine: Engine) -> None:
    archive = open_memory()
    position, rows = first.find_position(), first.read()
    release = change_columns(first, "renamed")
    release.log.sync(release.engine, archive)
    # In a database of either release: nothing is lost in the one or the other.
    target = Release(spare_engine, release.keyring, *release.columns)
    target.create()
    target.restore(archive, through=position)
    assert target.read() == rows
    assert target.verify()


def test_a_replaced_table_needs_a_word(first: Release, spare_engine: Engine) -> None:
    archive = open_memory()
    first.log.snapshot(first.engine, archive)
    before, rows = first.find_position(), first.read()
    release = first.migrate(REPLACE, "a", "b")
    track(release.engine, release.table)
    with pytest.raises(SchemaDriftError, match=r"acct was replaced") as caught:
        release.verify()
    assert "op.replace_type('acct', reason=...)" in str(caught.value.hint)
    with release.engine.begin() as connection:
        release.log.replace_type(connection, "acct", reason="rows were sorted out")
    release.insert((3, 31, 32))
    assert release.verify()
    assert release.replay() == release.read() == [(1, 11, 12), (3, 31, 32)]
    first.replay(through=before)
    assert first.read("again") == rows
    release.log.sync(release.engine, archive)
    target = Release(spare_engine, release.keyring, *release.columns)
    target.create()
    target.restore(archive)
    assert target.read() == release.read()
    assert target.verify()


def test_an_adoption_that_was_interrupted_by_the_rename_goes_on(
    first: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GivenUpError(Exception):
        pass

    def give_up(*_: int) -> None:
        raise GivenUpError

    with first.engine.connect() as connection, pytest.raises(GivenUpError):
        first.log.adopt(connection, chunk_rows=1, progress=give_up)
    release = change_columns(first, "renamed")
    with release.engine.connect() as connection:
        release.log.adopt(connection, chunk_rows=1)
    assert release.replay() == release.read()


def test_a_step_says_what_became_of_the_column(first: Release) -> None:
    release = change_columns(first, "renamed")

    def rename(row: Row) -> Row:
        return {("z" if name == "a" else name): value for name, value in row.items()}

    release.catalog.upcast("acct", from_revision=1, step=rename)
    assert release.replay() == release.read()
    assert release.verify()
    assert release.diagnose() == []


def test_a_snapshot_is_built_on_no_rows_of_another_column(
    first: Release, spare_engine: Engine
) -> None:
    archive = open_memory()
    first.log.snapshot(first.engine, archive)
    ddl = "ALTER TABLE acct DROP COLUMN b; ALTER TABLE acct ADD COLUMN b int"
    release = first.migrate(ddl, "a", "b")
    release.insert((3, 31, 32))
    release.log.snapshot(release.engine, archive)
    manifest = archive.read_manifest(archive.read_head().snapshots[-1])
    assert [(table.revisions, table.layers) for table in manifest.tables] == [((2,), ())]
    target = Release(spare_engine, release.keyring, *release.columns)
    target.create()
    target.restore(archive)
    assert target.read() == release.read() == [(1, 11, None), (2, 21, None), (3, 31, 32)]


def test_a_snapshot_of_a_table_that_nobody_noted_is_refused(first: Release) -> None:
    release = first.migrate("ALTER TABLE acct RENAME a TO z", "z", "b")
    with pytest.raises(SchemaDriftError, match="the log does not say so yet") as caught:
        release.log.snapshot(release.engine, open_memory())
    assert "oplog types sync" in str(caught.value.hint)


def test_a_column_that_was_gone_for_a_while_is_another_one(first: Release) -> None:
    without = first.migrate("ALTER TABLE acct DROP COLUMN b", "a")
    without.insert((3, 31))
    again = without.migrate("ALTER TABLE acct ADD COLUMN b int", "a", "b")
    again.insert((4, 41, 42))
    assert again.replay() == again.read()
    assert [row[2] for row in again.read()] == [None, None, None, 42]


# -- other databases -------------------------------------------------------------------------


def test_a_restored_database_tells_its_own_changes(first: Release, spare_engine: Engine) -> None:
    archive = open_memory()
    first.log.sync(first.engine, archive)
    restored = Release(spare_engine, first.keyring, "a", "b")
    # Other numbers than at the source: a column was there and went.
    run(spare_engine, "CREATE TABLE acct (gone int, id int PRIMARY KEY, a int, b int)")
    run(spare_engine, "ALTER TABLE acct DROP COLUMN gone")
    track(spare_engine, restored.table)
    restored.restore(archive)
    assert restored.diagnose() == []
    restored.insert((3, 31, 32))
    assert restored.replay() == restored.read()
    renamed = restored.migrate("ALTER TABLE acct RENAME a TO z", "z", "b")
    renamed.insert((4, 41, 42))
    assert renamed.verify()
    assert renamed.replay() == renamed.read()


def test_a_database_restored_in_its_own_place_goes_on(first: Release) -> None:
    archive = open_memory()
    first.log.sync(first.engine, archive)
    run(first.engine, "DROP TABLE acct")
    with first.engine.begin() as connection:
        catalog = ("type", "type_numbers", "key", "archive")
        for name in ("record", "part", "token", "entry", "ticket", "outcome", *catalog):
            connection.exec_driver_sql(f"ALTER TABLE oplog.oplog_{name} DISABLE TRIGGER USER")
            connection.exec_driver_sql(f"DELETE FROM oplog.oplog_{name}")
            for trigger in connection.exec_driver_sql(
                "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal "
                f"AND tgrelid = 'oplog.oplog_{name}'::regclass"
            ).scalars():
                connection.exec_driver_sql(
                    f"ALTER TABLE oplog.oplog_{name} ENABLE ALWAYS TRIGGER {trigger}"
                )
    again = Release(first.engine, first.keyring, "a", "b")
    again.create()
    again.restore(archive)
    again.insert((3, 31, 32))
    assert again.replay() == again.read() == [(1, 11, 12), (2, 21, 22), (3, 31, 32)]
    assert again.diagnose() == []


def follow(target: Release, kept: KeptLog) -> int:
    with target.engine.connect() as connection:
        return follow_log(
            connection,
            kept,
            log=open_log(target.log, kept),
            schema="oplog",
        ).entries


@pytest.fixture
def followed(first: Release, spare_engine: Engine) -> tuple[KeptLog, Release]:
    """A log outside the database, and a database that follows it."""
    kept = KeptLog(first.log.store)
    take(kept, first)
    follower = Release(spare_engine, first.keyring, "a", "b")
    follower.create()
    follow(follower, kept)
    return kept, follower


def take(kept: KeptLog, release: Release) -> None:
    with release.engine.connect() as connection:
        kept.take(connection)


def test_a_follower_may_migrate_before_or_after_a_rename(
    first: Release, followed: tuple[KeptLog, Release]
) -> None:
    kept, follower = followed
    first.insert((7, 71, 72))
    release = change_columns(first, "renamed")
    take(kept, release)
    # The table of before has a place for everything.
    follow(follower, kept)
    assert follower.read() == release.read()
    assert follower.verify()
    migrated = follower.migrate(CHANGES["renamed"][0], "z", "b")
    release.delete(1)
    take(kept, release)
    follow(migrated, kept)
    assert migrated.read() == release.read()
    assert migrated.verify()


def test_a_follower_waits_for_its_migration_where_values_have_no_place(
    first: Release, followed: tuple[KeptLog, Release]
) -> None:
    kept, follower = followed
    first.insert((7, 71, 72))
    ddl = "ALTER TABLE acct ADD COLUMN c int DEFAULT 5"
    release = first.migrate(ddl, "a", "b", "c")
    release.insert((3, 31, 32, 33))
    take(kept, release)
    for _ in range(2):
        with pytest.raises(SchemaDriftError, match="values of c would be lost") as caught:
            follow(follower, kept)
        assert "revision 2 of the type" in str(caught.value.hint)
        # All before it is there.
        assert follower.read() == [(1, 11, 12), (2, 21, 22), (7, 71, 72)]
    migrated = follower.migrate(ddl, "a", "b", "c")
    follow(migrated, kept)
    assert migrated.read() == release.read()
    assert migrated.verify()


def test_a_follower_that_migrates_too_early_waits_for_the_log(
    first: Release, followed: tuple[KeptLog, Release]
) -> None:
    kept, follower = followed
    first.insert((7, 71, 72))
    # Of a change that the log knows, and has not told yet, nothing is done to the rows.
    migrated = follower.migrate("ALTER TABLE acct DROP COLUMN b", "a")
    take(kept, first)
    with pytest.raises(SchemaDriftError, match="no revision of type 'acct'"):
        follow(migrated, kept)
    release = first.migrate("ALTER TABLE acct DROP COLUMN b", "a")
    release.note()
    release.insert((8, 81))
    take(kept, release)
    follow(migrated, kept)
    assert migrated.read() == release.read()


def test_a_follower_of_rows_that_were_rewritten(
    first: Release, followed: tuple[KeptLog, Release]
) -> None:
    kept, follower = followed
    ddl = "ALTER TABLE acct ALTER a TYPE bigint USING a * 2"
    release = first.migrate(ddl, "a", "b")
    release.note()
    release.insert((3, 31, 32))
    take(kept, release)
    with pytest.raises(SchemaDriftError, match="values of a would be lost"):
        follow(follower, kept)
    migrated = follower.migrate(ddl, "a", "b")
    follow(migrated, kept)
    assert migrated.read() == release.read()
    assert migrated.verify()


# -- a message of the application's own --------------------------------------------------------


def test_a_registered_revision_is_not_used_for_another_column(
    engine: Engine, keyring: Keyring
) -> None:
    first = Registered(engine, keyring, "a", "b")
    first.create()
    first.insert((1, 11, 12))
    first.log.detach(first.sessions)
    run(engine, "ALTER TABLE acct DROP COLUMN b", "ALTER TABLE acct ADD COLUMN b int")
    again = Registered(engine, keyring, "a", "b")
    with pytest.raises(ConfigurationError, match="replaced since") as caught:
        again.insert((2, 21, 22))
    assert "revision=2" in str(caught.value.hint)
    assert [row[0] for row in again.read()] == [1]
