"""Tables of the log's types that are dropped, renamed or moved: said at once, with a way out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker

import oplog.migration
from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, SchemaDriftError
from oplog.recovery import follow_log
from oplog.store import TablesLog
from oplog.store.adopted import Turns
from tests.kept import KeptLog, open_log
from tests.logged import track
from tests.postgres.archived import open_memory

pytestmark = pytest.mark.postgres


def declare(*names: str, schema: str | None = None) -> sa.MetaData:
    metadata = sa.MetaData()
    for name in names:
        sa.Table(
            name,
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("v", sa.Text),
            schema=schema,
        )
    return metadata


class Release:
    """A version of the application: its models, its log, and sessions on a database."""

    def __init__(self, engine: Engine, keyring: Keyring, metadata: sa.MetaData) -> None:
        self.engine = engine
        self.keyring = keyring
        self.metadata = metadata
        self.log = Oplog(TypeCatalog.from_models(metadata), keyring=keyring)
        self.sessions = sessionmaker(engine)
        self.log.attach(self.sessions)

    def create(self) -> None:
        self.metadata.create_all(self.engine)
        track(self.engine, *self.metadata.tables.values())

    def insert(self, table: str, *keys: int) -> None:
        with self.sessions.begin() as session:
            for key in keys:
                session.execute(
                    self.metadata.tables[table].insert().values(id=key, v=f"{table} {key}")
                )

    def migrate(self, work: Callable[[Any, Connection], None], metadata: sa.MetaData) -> Release:
        """The next version, after a migration."""
        self.log.detach(self.sessions)
        with self.engine.begin() as connection:
            work(Operations(MigrationContext.configure(connection)), connection)
        return Release(self.engine, self.keyring, metadata)

    def read(self, table: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql(f"SELECT id, v FROM {table} ORDER BY id")
            return [tuple(row) for row in rows]

    def diagnose(self) -> list[str]:
        with self.engine.connect() as connection:
            found = self.log.diagnose(connection)
        # Not "setting": the server of the tests runs without fsync.
        return [f.what for f in found if f.severity == "problem" and f.what != "setting"]

    def verify(self) -> bool:
        with self.engine.connect() as connection:
            return self.log.verify(connection).ok

    def adopt(self, *tables: str) -> None:
        with self.engine.connect() as connection:
            self.log.adopt(connection, tables)

    def position(self) -> int:
        with self.engine.connect() as connection:
            return max(entry.position for entry in self.log.read(connection))


@pytest.fixture
def first(engine: Engine) -> Release:
    release = Release(engine, Keyring.generate(), declare("kept", "old"))
    release.create()
    release.insert("kept", 1, 2)
    release.insert("old", 1, 2)
    return release


def drop(_: Any, connection: Connection) -> None:
    connection.exec_driver_sql("DROP TABLE old")


def rename(_: Any, connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE old RENAME TO newer")


def move(_: Any, connection: Connection) -> None:
    connection.exec_driver_sql("CREATE SCHEMA elsewhere")
    connection.exec_driver_sql("ALTER TABLE old SET SCHEMA elsewhere")


GONE = {"drop": (drop, ("kept",)), "rename": (rename, ("kept", "newer")), "move": (move, ("kept",))}
every_way = pytest.mark.parametrize("how", GONE)


def lose(first: Release, how: str) -> Release:
    work, names = GONE[how]
    return first.migrate(work, declare(*names))


def retire(op: Any, _: Connection) -> None:
    op.retire_type("old", reason="release 2 does without")


# -- it is said -------------------------------------------------------------------------------


def test_a_dropped_table_is_a_problem_until_it_is_noted(first: Release) -> None:
    archive = open_memory()
    first.log.sync(first.engine, archive)
    release = lose(first, "drop")
    assert release.diagnose() == ["type-table-missing"]
    synced = release.log.sync(release.engine, archive)
    snapshot = release.log.snapshot(release.engine, archive)
    for problems in (synced.problems, snapshot.problems):
        assert [problem.what for problem in problems] == ["type-table-missing"]
        assert "oplog types sync" in problems[0].hint
    report = release.log.check(archive, release.engine)
    assert not report.ok
    assert [problem.what for problem in report.problems] == ["schema"]
    assert "oplog types sync" in report.problems[0].message
    with release.engine.connect() as connection:
        assert release.log.store_types(connection).retired == ["old"]
    assert release.diagnose() == []
    assert release.log.sync(release.engine, archive).problems == ()
    assert release.log.check(archive, release.engine).ok


@pytest.mark.parametrize("how", ["rename", "move"])
def test_a_table_under_another_name_is_followed(first: Release, how: str) -> None:
    archive = open_memory()
    first.log.sync(first.engine, archive)
    release = lose(first, how)
    assert release.diagnose() == ["table-differs"]
    # What the database proves is no reason to keep anything from being published.
    assert release.log.sync(release.engine, archive).problems == ()
    assert release.log.snapshot(release.engine, archive).taken
    with release.engine.connect() as connection:
        (shape,) = release.log.store_types(connection).stored
    assert (shape.type_name, shape.revision) == ("old", 2)
    assert release.diagnose() == []
    release.log.sync(release.engine, archive)
    assert release.log.check(archive, release.engine).ok


@every_way
def test_verify_and_replay_know_what_the_database_proves(first: Release, how: str) -> None:
    release = lose(first, how)
    with release.engine.begin() as connection:
        report = release.log.verify(connection)
        assert report.ok
        assert report.unnoted == ("old",)
        # Of the log alone: nobody has noted the change there yet.
        assert release.log.replay(connection, into="again").rows == 4
    assert release.read("again.old") == [(1, "old 1"), (2, "old 2")]


def test_a_restore_that_has_no_place_for_rows_names_the_revision(
    first: Release, spare_engine: Engine
) -> None:
    archive = open_memory()
    first.log.sync(first.engine, archive)
    target = Release(spare_engine, first.keyring, declare("kept"))
    target.create()
    with (
        target.engine.connect() as empty,
        pytest.raises(SchemaDriftError, match=r"public\.old is in the log") as caught,
    ):
        target.log.restore(archive, empty)
    assert "revision 1 of type 'old'" in str(caught.value.hint)
    assert target.read("kept") == []


# -- the way out ------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@every_way
@pytest.mark.parametrize("early", [False, True], ids=["no early snapshot", "early snapshot"])
def test_a_retired_type_stands_in_nobodys_way(
    first: Release, spare_engine: Engine, how: str, early: bool
) -> None:
    archive = open_memory()
    if early:
        first.log.snapshot(first.engine, archive)
    release = lose(first, how).migrate(retire, declare("kept"))
    release.insert("kept", 3)
    assert release.diagnose() == []
    assert release.verify()
    with release.engine.begin() as connection:
        assert release.log.replay(connection, into="again").rows == 3
    assert release.read("again.kept") == release.read("kept")
    assert release.log.sync(release.engine, archive).problems == ()
    assert release.log.check(archive, release.engine).problems == ()
    target = Release(spare_engine, release.keyring, declare("kept"))
    target.create()
    with target.engine.connect() as connection:
        target.log.restore(archive, connection)
    assert target.read("kept") == release.read("kept")
    assert target.verify()
    assert target.diagnose() == []


def test_rows_go_on_under_another_name(first: Release, spare_engine: Engine) -> None:
    archive = open_memory()
    release = lose(first, "rename").migrate(retire, declare("kept", "newer"))
    release.adopt("newer")
    release.insert("newer", 3)
    assert release.verify()
    assert release.log.snapshot(release.engine, archive).problems == ()
    release.insert("newer", 4)
    assert release.log.sync(release.engine, archive).problems == ()
    target = Release(spare_engine, release.keyring, declare("kept", "newer"))
    target.create()
    with target.engine.connect() as connection:
        target.log.restore(archive, connection)
    assert target.read("newer") == release.read("newer")


@pytest.mark.parametrize("late", [False, True])
def test_it_may_be_said_before_or_after_in_the_same_revision(first: Release, late: bool) -> None:
    def work(op: Any, connection: Connection) -> None:
        steps = [lambda: retire(op, connection), lambda: op.drop_table("old")]
        for step in reversed(steps) if late else steps:
            step()

    release = first.migrate(work, declare("kept"))
    assert release.verify()
    assert release.diagnose() == []


def test_before_it_was_retired_its_rows_are_part_of_the_log(
    first: Release, spare_engine: Engine
) -> None:
    archive = open_memory()
    before = first.position()
    release = lose(first, "drop").migrate(retire, declare("kept"))
    release.log.sync(release.engine, archive)
    with release.engine.begin() as connection:
        assert release.log.replay(connection, into="again", through=before).rows == 4
    assert release.read("again.old") == [(1, "old 1"), (2, "old 2")]
    target = Release(spare_engine, release.keyring, declare("kept", "old"))
    target.create()
    with target.engine.connect() as connection:
        target.log.restore(archive, connection, through=before)
    assert target.read("old") == [(1, "old 1"), (2, "old 2")]


def test_a_table_of_the_name_begins_anew(first: Release, spare_engine: Engine) -> None:
    archive = open_memory()
    without = lose(first, "drop").migrate(retire, declare("kept"))
    without.log.sync(without.engine, archive)
    again = Release(without.engine, without.keyring, declare("kept", "old"))
    again.create()
    again.insert("old", 2, 5)
    assert again.verify()
    with again.engine.begin() as connection:
        again.log.replay(connection, into="again")
    assert again.read("again.old") == again.read("old") == [(2, "old 2"), (5, "old 5")]
    assert again.diagnose() == []
    again.log.sync(again.engine, archive)
    target = Release(spare_engine, again.keyring, declare("kept", "old"))
    target.create()
    with target.engine.connect() as connection:
        target.log.restore(archive, connection)
    assert target.read("old") == again.read("old")


def test_a_type_that_was_retired_too_early_is_missed(first: Release) -> None:
    retired = first.migrate(retire, declare("kept", "old"))
    with retired.engine.connect() as connection:
        report = retired.log.verify(connection)
    # Its rows are there, and the log says that they are not.
    assert [(d.table, d.kind) for d in report.differences] == [("public.old", "extra")] * 2
    retired.insert("old", 3)
    with retired.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE old")
    with pytest.raises(SchemaDriftError, match="was retired, and rows of it were logged since"):
        retired.verify()


def test_a_follower_goes_past_it(first: Release, spare_engine: Engine) -> None:
    kept = KeptLog(first.log.store)
    follower = Release(spare_engine, first.keyring, declare("kept", "old"))
    follower.create()

    def follow() -> None:
        with first.engine.connect() as connection:
            kept.take(connection)
        with follower.engine.connect() as connection:
            follow_log(
                connection,
                kept,
                log=open_log(follower.log, kept),
                schema="oplog",
            )

    follow()
    first.insert("old", 3)
    release = lose(first, "drop").migrate(retire, declare("kept"))
    release.insert("kept", 3)
    with follower.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE old")
    follow()
    assert follower.read("kept") == release.read("kept")


def test_it_is_found_by_the_aggregate_of_adoptions(first: Release) -> None:
    release = lose(first, "drop").migrate(retire, declare("kept"))
    with release.engine.connect() as connection:
        log = TablesLog(release.log.store, connection)
        turns = log.find_adoptions(["old", "kept"], snapshot=log.read_snapshot())
    assert turns == {"old": Turns(retired=release.position(), retired_revision=1)}


# -- what bad input gets ----------------------------------------------------------------------


def test_a_type_that_the_log_does_not_have(first: Release) -> None:
    with pytest.raises(DBAPIError, match="the log has no type 'odl'"):
        first.migrate(lambda op, _: op.retire_type("odl", reason="typo"), declare("kept"))


@pytest.mark.parametrize("reason", ["", "  \t"])
def test_no_reason(first: Release, reason: str) -> None:
    with pytest.raises(ConfigurationError, match="needs a reason"):
        first.migrate(lambda op, _: op.retire_type("old", reason=reason), declare("kept"))


def test_it_cannot_be_undone() -> None:
    operation = oplog.migration.RetireTypeOp("old", reason="gone", log_schema="oplog")
    with pytest.raises(ConfigurationError, match="cannot be undone"):
        operation.reverse()


def test_it_can_be_printed() -> None:
    out = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": out}
    )
    operations: Any = Operations(context)
    operations.retire_type("it's", reason="gone: 100% of it", log_schema="op log")
    assert out.getvalue().strip() == (
        "SELECT \"op log\".oplog_retire_type('it''s', 'gone: 100% of it');"
    )


def test_the_mark_is_an_entry_like_any_other(first: Release) -> None:
    release = lose(first, "drop").migrate(retire, declare("kept"))
    with release.engine.connect() as connection:
        [entry] = release.log.read(connection, aggregate="adopted/old")
    assert entry.metadata["retired"] == ["old"]
    assert entry.metadata["oplog.reason"] == ["release 2 does without"]
    assert entry.operations == ()
