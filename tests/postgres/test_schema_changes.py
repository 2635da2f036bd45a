"""Whatever a migration does to a logged table, the log tells the rows of every position exactly.

Each test is one change of `CHANGES`. Copies of rows are texts that SELECT gave at the time.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeAlias, get_args

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from oplog import Oplog
from oplog.errors import OplogError, SchemaChangedError, SchemaDriftError
from oplog.facade.reading_part import RowShape
from tests.databases import FreshDatabase
from tests.evolved import WAYS, Application, Evolved, alter, assert_same, group, prepare
from tests.evolving import ADDED, DEFAULTS, DROPPED, RENAMED, SAME_KIND, WORDS, Change
from tests.evolving_tables import KEYS, NAMES, NOTHING, PARTITIONS, REPLACED, SEVERAL
from tests.evolving_types import DOMAINS, ENUMS, MADE, OTHER_KIND
from tests.postgres.archived import open_memory

pytestmark = pytest.mark.postgres

Key: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = dict[tuple[str, Key], dict[str, Any]]

CHANGES: dict[str, Change] = (
    ADDED
    | DROPPED
    | RENAMED
    | DEFAULTS
    | SAME_KIND
    | OTHER_KIND
    | ENUMS
    | MADE
    | DOMAINS
    | KEYS
    | NAMES
    | REPLACED
    | PARTITIONS
    | NOTHING
    | SEVERAL
)
every_change = pytest.mark.parametrize("name", CHANGES)
LOGGED_ANEW = KEYS | REPLACED | PARTITIONS
"""Changes after which a follower may ask for a new database."""

# What is known to go wrong. A test of it that passes fails the run: it is to be removed here.
RESTORED_HOLES = {
    "a table split in two": "a table that came later is asked for at positions before it",
}
_UNNOTED = "a process that is bound does not see DDL that is not noted yet"
UNNOTED_HOLES: dict[str, str] = {}


def expect_hole(request: pytest.FixtureRequest, holes: dict[str, str], name: str) -> None:
    """The test of this change fails, for a reason that is known."""
    if name in holes:
        request.applymarker(pytest.mark.xfail(reason=holes[name], strict=True))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("way", WAYS)
@every_change
def test_every_position_replays(engine: Engine, name: str, way: str) -> None:
    evolved = Evolved(CHANGES[name], engine, way=way)
    evolved.migrate()
    evolved.new.assert_whole()
    evolved.write()
    evolved.new.assert_whole()
    evolved.assert_past()


SNAPSHOTS = {
    "none": (),
    "before": ("before",),
    "after": ("after",),
    "both": ("before", "after"),
    "begun after": ("late",),
    "begun after, one": ("late", "after"),
}
"""When an archive gets snapshots, and whether it is begun only after the change."""


@pytest.mark.sampled(5)
@pytest.mark.parametrize("snapshots", SNAPSHOTS)
@every_change
def test_archives_restore_into_the_newest_schema_and_the_former_one(
    request: pytest.FixtureRequest,
    engine: Engine,
    targets: tuple[Engine, Engine],
    name: str,
    snapshots: str,
) -> None:
    expect_hole(request, RESTORED_HOLES, name)
    evolved = Evolved(CHANGES[name], engine)
    archive = open_memory()
    if "late" not in SNAPSHOTS[snapshots]:
        evolved.old.log.sync(engine, archive)
    if "before" in SNAPSHOTS[snapshots]:
        assert evolved.old.log.snapshot(engine, archive).taken
    evolved.migrate()
    evolved.write()
    evolved.new.log.sync(engine, archive)
    if "after" in SNAPSHOTS[snapshots]:
        assert evolved.new.log.snapshot(engine, archive).taken
    newest = prepare_target(evolved, targets[0])
    newest.restore(archive)
    assert_same(newest.copy(), evolved.new.copy())
    newest.assert_whole()
    former = prepare_target(evolved, targets[1], through=0)
    former.restore(archive, through=evolved.position)
    assert_same(former.copy(), evolved.before)
    former.assert_whole()


@pytest.fixture
def targets(spare_engine: Engine, third_engine: Engine) -> tuple[Engine, Engine]:
    """Two databases to restore into."""
    return spare_engine, third_engine


@pytest.fixture
def third_engine(cluster: Any) -> Any:
    database = FreshDatabase(cluster)
    engine = database.make_engine()
    yield engine
    engine.dispose()
    database.drop()


def prepare_target(evolved: Evolved, engine: Engine, *, through: int | None = None) -> Application:
    """An application on an empty database of the schema of after, or after so many groups."""
    prepare(engine, evolved.change, through=through)
    target = evolved.open(engine)
    if through == 0:
        target.loose = {}
    target.track()
    return target


@pytest.mark.sampled(4)
@every_change
def test_a_follower_that_is_migrated_goes_on(
    engine: Engine, spare_engine: Engine, third_engine: Engine, name: str
) -> None:
    """Where rows were logged anew it may refuse, and a new one takes its place."""
    evolved = Evolved(CHANGES[name], engine)
    archive = open_memory()
    follower = prepare_target(evolved, spare_engine, through=0)
    evolved.old.log.sync(engine, archive)
    follower.follow(archive)
    assert_same(follower.copy(), evolved.before)
    groups = list(group(evolved.change))
    engines = [spare_engine]

    def follow(number: int) -> None:
        ddl = [one for one in groups[number - 1][0] if not one.startswith("ROWS ")]
        alter(spare_engine, ddl, alone=evolved.change.alone)
        evolved.new.log.sync(engine, archive)
        migrated = evolved.open(spare_engine)
        try:
            migrated.follow(archive)
        except SchemaDriftError as error:
            if name not in LOGGED_ANEW or "new, empty database" not in str(error.hint):
                raise
            migrated = prepare_target(evolved, third_engine)
            migrated.follow(archive)
            engines.append(third_engine)
        assert_same(migrated.copy(), evolved.new.copy())

    evolved.migrate(follow)
    evolved.write()
    evolved.new.log.sync(engine, archive)
    migrated = evolved.open(engines[-1])
    migrated.follow(archive)
    assert_same(migrated.copy(), evolved.new.copy())
    migrated.assert_whole()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("how", ["Core", "ORM"])
@pytest.mark.parametrize("way", WAYS)
@every_change
def test_a_process_from_before_the_change_writes_exactly_or_not_at_all(
    engine: Engine, name: str, way: str, how: str
) -> None:
    change = CHANGES[name]
    evolved = Evolved(change, engine, way=way)
    evolved.migrate()
    errors = evolved.write_as_before(how=how)
    again = [error for error in errors if isinstance(error, OplogError) and error.retryable]
    others = [error for error in errors if error not in again]
    assert len(again) <= 1
    if change.old == "goes on":
        assert others == []
    if change.old == "stops":
        assert others
    for error in others:
        # One of the database, or one that says what became of the table.
        assert isinstance(error, DBAPIError) or (isinstance(error, OplogError) and error.hint)
    evolved.new.assert_whole()
    evolved.write()
    evolved.new.assert_whole()


@pytest.mark.sampled(4, seed=1)
@every_change
def test_a_process_from_before_the_change_may_write_before_it_is_noted(
    request: pytest.FixtureRequest, engine: Engine, name: str
) -> None:
    expect_hole(request, UNNOTED_HOLES, name)
    evolved = Evolved(CHANGES[name], engine)
    evolved.migrate_and_wait()
    errors = evolved.write_as_before()
    assert sum(isinstance(error, SchemaChangedError) for error in errors) <= 1
    evolved.note()
    evolved.new.assert_whole()
    evolved.write()
    evolved.new.assert_whole()
    if not evolved.change.replaced:
        evolved.assert_past()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("how", ["Core", "ORM"])
@every_change
def test_a_process_with_models_of_before_may_be_the_first_to_write(
    engine: Engine, name: str, how: str
) -> None:
    """One that was started after the change: nothing that it knows of the database is old."""
    evolved = Evolved(CHANGES[name], engine)
    evolved.migrate_and_wait()
    errors = evolved.write_as_before(how=how, process=evolved.old.restart())
    for error in errors:
        assert isinstance(error, DBAPIError) or (isinstance(error, OplogError) and error.hint)
    evolved.note()
    evolved.new.assert_whole()
    evolved.write()
    evolved.new.assert_whole()
    if not evolved.change.replaced:
        evolved.assert_past()


@pytest.mark.sampled(4)
@every_change
def test_a_row_is_told_as_it_was_and_as_it_is(engine: Engine, name: str) -> None:
    evolved = Evolved(CHANGES[name], engine)
    before = read_rows(evolved.old)
    evolved.migrate()
    evolved.write()
    after = read_rows(evolved.new)
    position = evolved.new.find_position()
    for (table, key), row in after.items():
        model = evolved.new.metadata.tables[table]
        with engine.connect() as connection:
            assert evolved.new.log.as_of(connection, model, key=key, at=position) == row
            history = evolved.new.log.history(connection, model, key)
            assert history
    for (table, key), row in before.items():
        log, present = find_now(evolved, table)
        if present is None:
            continue
        with engine.connect() as connection:
            told = log.as_of(connection, present, key=key, at=evolved.position, shape="then")
            assert told == row
            if is_gone(evolved, after, table=table, key=key):
                for shape in get_args(RowShape):
                    told = log.as_of(connection, present, key=key, at=position, shape=shape)
                    assert told is None


def find_now(evolved: Evolved, table: str) -> tuple[Oplog, sa.Table | None]:
    """A log with a model of a table of before; the model of its name, unless another has that."""
    if table not in evolved.change.moved:
        return evolved.old.log, evolved.old.metadata.tables[table]
    return evolved.new.log, evolved.new.metadata.tables.get(evolved.change.moved[table])


def is_gone(evolved: Evolved, after: Rows, *, table: str, key: Key) -> bool:
    """Whether no table that the row may be in now has one of its key."""
    tables = evolved.new.metadata.tables
    name = evolved.change.moved.get(table, table)
    return not any(k == key and (name == t or name not in tables) for t, k in after)


def read_rows(application: Application) -> Rows:
    """By table and key, what SQLAlchemy gives, in the form that the log gives."""
    rows: Rows = {}
    with application.engine.connect() as connection:
        for schema, name in application.places:
            table = application.find(schema, name)
            columns = [column for column in table.columns if column.computed is None]
            for row in connection.execute(sa.select(*columns)).mappings():
                key = tuple(row[column.name] for column in table.primary_key)
                rows[table.fullname, key] = {c.name: as_logged(c, row[c.name]) for c in columns}
    return rows


def as_logged(column: sa.Column[Any], value: Any) -> Any:
    """A value as the log gives it."""
    if isinstance(value, (IPv4Address, IPv6Address)):
        return f"{value}/{value.max_prefixlen}"
    if isinstance(value, float) and isinstance(column.type, sa.REAL):
        return struct.unpack("f", struct.pack("f", value))[0]
    return value


def test_rows_that_were_truncated_past_the_log_are_missed_until_the_type_is_replaced(
    engine: Engine,
) -> None:
    evolved = Evolved(NOTHING["cluster"], engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'the test says so'")
        connection.exec_driver_sql("TRUNCATE acct")
    with engine.connect() as connection:
        evolved.new.log.note_changes(connection)
    with engine.connect() as connection:
        report = evolved.new.log.verify(connection)
    assert report.count == 3
    with engine.connect() as connection:
        evolved.new.log.replace_type(connection, "acct", reason="the test says so")
    evolved.new.assert_whole()
    evolved.new.write("INSERT INTO acct (id) VALUES (9)")
    evolved.new.assert_whole()
    evolved.assert_past()


def test_there_are_changes_of_every_kind() -> None:
    assert len(CHANGES) == sum(
        map(
            len,
            (
                ADDED,
                DROPPED,
                RENAMED,
                DEFAULTS,
                SAME_KIND,
                OTHER_KIND,
                ENUMS,
                MADE,
                DOMAINS,
                KEYS,
                NAMES,
                REPLACED,
                PARTITIONS,
                NOTHING,
                SEVERAL,
            ),
        )
    )
    words = {word for change in CHANGES.values() for word in WORDS if word in change.ddl}
    assert words == set(WORDS)
