"""A database that goes through a schema change with its log, and copies of it that must be equal.

What is compared is text that SELECT gives, column by column; nothing here asks the product.
Models are reflected from the database, so each application has those of its own time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import OplogError, SchemaChangedError, SchemaDriftError
from tests.evolving import OLD_ROW, WORDS, Change, split
from tests.former_writes import list_writes, touch
from tests.logged import run, track

WAYS = ("first writer", "first writer, Core", "in the migration", "types sync")
AGAIN = "again"
NO_PARAMETERS = {"no_parameters": True}
LIVE = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT IN "
    f"('pg_catalog', 'information_schema', 'oplog', '{AGAIN}') ORDER BY 1, 2"
)


@dataclass(frozen=True)
class Copy:
    """A table's columns with their types, and its rows with texts by column, sorted."""

    types: dict[str, str]
    rows: list[dict[str, str | None]]


Copies = dict[str, Copy]
"""By the table's name."""


def copy_table(connection: Connection, schema: str, name: str) -> Copy:
    """What SELECT gives."""
    types = connection.exec_driver_sql(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        (f'"{schema}"."{name}"',),
    ).all()
    columns = ", ".join(f'"{column}"::text' for column, _ in types)
    found = connection.exec_driver_sql(
        f'SELECT {columns} FROM "{schema}"."{name}"', execution_options=NO_PARAMETERS
    )
    rows = [dict(zip((column for column, _ in types), row, strict=True)) for row in found]
    return Copy({str(c): str(t) for c, t in types}, sorted(rows, key=repr_sorted))


def repr_sorted(row: dict[str, str | None]) -> str:
    return repr(sorted(row.items()))


def copy_schema(engine: Engine, schema: str) -> Copies:
    """All tables of a schema."""
    with engine.connect() as connection:
        names = connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace",
            (schema,),
        ).scalars()
        return {name: copy_table(connection, schema, name) for name in list(names)}


def drop_columns(copy: Copy, names: tuple[str, ...]) -> Copy:
    """Without columns that a log does not have."""
    rows = [{c: text for c, text in row.items() if c not in names} for row in copy.rows]
    types = {c: one for c, one in copy.types.items() if c not in names}
    return Copy(types, sorted(rows, key=repr_sorted))


def retype(copies: Copies, types: Mapping[str, str]) -> Copies:
    """With other types of the columns that are named."""
    return {
        name: Copy({c: types.get(c, t) for c, t in one.types.items()}, one.rows)
        for name, one in copies.items()
    }


def assert_same(found: Copies, wanted: Copies) -> None:
    """Both have the same tables, columns, types and rows; says what differs."""
    differences = (
        [f"tables {sorted(found)}, not {sorted(wanted)}"] if set(found) != set(wanted) else []
    )
    for name in found.keys() & wanted.keys():
        types, rows = found[name].types, found[name].rows
        if types != wanted[name].types:
            differences.append(f"{name}: columns {types}, not {wanted[name].types}")
        differences += [f"{name}: surplus {row}" for row in rows if row not in wanted[name].rows]
        differences += [f"{name}: missing {row}" for row in wanted[name].rows if row not in rows]
        if len(rows) != len(wanted[name].rows):
            differences.append(f"{name}: {len(rows)} rows, not {len(wanted[name].rows)}")
    assert not differences, "\n".join(differences)


class Spelled(sa.types.UserDefinedType[str]):
    """A type by its name in the database."""

    cache_ok = True

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def get_col_spec(self, **_: object) -> str:
        return self.spec


def spell(inspector: sa.Inspector, table: sa.Table, column: Any) -> None:
    """Give a column the name of its type where the log has texts: composites, arrays of enums."""
    found = column["type"]
    if isinstance(found, sa.types.NullType) or (
        isinstance(found, sa.ARRAY) and isinstance(found.item_type, sa.Enum)
    ):
        connection = inspector.bind
        assert isinstance(connection, Connection)
        spec = connection.exec_driver_sql(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attname = %s",
            (f'"{table.schema or "public"}"."{table.name}"', column["name"]),
        ).scalar_one()
        column["type"] = Spelled(spec)


@dataclass
class Application:
    """A process with models of the database as it was when it started, and its own log."""

    engine: Engine
    keyring: Keyring
    untracked: tuple[str, ...] = ()
    loose: Mapping[str, str] = field(default_factory=dict)
    metadata: sa.MetaData = field(default_factory=sa.MetaData)
    places: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.places:
            with self.engine.connect() as connection:
                self._reflect(connection)
        untracked = {n: "not logged" for n in self.untracked if n in self.metadata.tables}
        catalog = TypeCatalog.from_models(self.metadata, untracked=untracked)
        self.log = Oplog(catalog, keyring=self.keyring)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)
        self.log.attach(self.sessions)

    def _reflect(self, connection: Connection) -> None:
        self.places = [
            (schema, name)
            for schema, name in connection.exec_driver_sql(LIVE)
            if name not in self.untracked
        ]
        for schema, name in self.places:
            place = None if schema == "public" else schema
            with warnings.catch_warnings():
                # SQLAlchemy does not know composite types, and an option of a check that is NOT
                # VALID.
                warnings.filterwarnings("ignore", "Did not recognize type")
                warnings.filterwarnings("ignore", "Can't validate argument", sa.exc.SAWarning)
                # Not what it refers to: that is reflected in its turn, or not logged.
                sa.Table(
                    name,
                    self.metadata,
                    schema=place,
                    autoload_with=connection,
                    listeners=[("column_reflect", spell)],
                )

    def restart(self) -> Application:
        """Another process with the same models, which knows nothing of the database yet."""
        return replace(self)

    def track(self) -> None:
        """Put guards on all tables of the models that are logged."""
        track(self.engine, *(self.find(schema, name) for schema, name in self.places))

    def find(self, schema: str, name: str) -> sa.Table:
        return self.metadata.tables[name if schema == "public" else f"{schema}.{name}"]

    def write(self, statements: str) -> None:
        """Each statement in a transaction of its own."""
        for statement in split(statements):
            with self.sessions.begin() as session:
                session.connection().exec_driver_sql(statement, execution_options=NO_PARAMETERS)

    def copy(self) -> Copies:
        """The live tables that the models have."""
        with self.engine.connect() as connection:
            return {name: copy_table(connection, schema, name) for schema, name in self.places}

    def find_position(self) -> int:
        """The highest position so far."""
        with self.engine.connect() as connection:
            return max(entry.position for entry in self.log.read(connection))

    def replay(self, **options: Any) -> Copies:
        with self.engine.begin() as connection:
            self.log.replay(connection, into=AGAIN, **options)
        return copy_schema(self.engine, AGAIN)

    def assert_whole(self) -> None:
        """The log tells the live rows, by the product's verdict and by a comparison of text."""
        with self.engine.connect() as connection:
            report = self.log.verify(connection)
        assert report.ok, report.differences
        assert_same(self.replay(), retype(self.copy(), self.loose))

    def restore(self, archive: Any, **options: Any) -> None:
        engine = sa.create_engine(self.engine.url, poolclass=NullPool)
        with engine.connect() as connection:
            self.log.restore(archive, connection, **options)

    def follow(self, archive: Any) -> None:
        engine = sa.create_engine(self.engine.url, poolclass=NullPool)
        with engine.connect() as connection:
            self.log.follow(archive, connection)


def group(change: Change) -> Iterator[tuple[list[str], str]]:
    """Statements that share a transaction, each with what is written through the log after it."""
    ddl: list[str] = []
    for statement in split(change.ddl):
        if statement.startswith("LOGGED "):
            yield ddl, statement.removeprefix("LOGGED ")
            ddl = []
        else:
            ddl.append(statement)
    yield ddl, ""


def prepare(engine: Engine, change: Change, *, through: int | None = None) -> None:
    """The schema of after the change, or after so many of its groups, without any rows."""
    run(engine, *split(change.before))
    for ddl, _ in list(group(change))[:through]:
        alter(engine, [one for one in ddl if not one.startswith(WORDS)], alone=change.alone)


def alter(engine: Engine, ddl: list[str], *, alone: bool) -> None:
    """Run DDL that is not noted."""
    if alone:
        apart = engine.execution_options(isolation_level="AUTOCOMMIT")
        with apart.connect() as connection:
            for statement in ddl:
                execute(connection, statement)
    else:
        with engine.begin() as connection:
            for statement in ddl:
                execute(connection, statement)


def execute(connection: Connection, statement: str) -> None:
    """One statement of a migration."""
    if statement.startswith("TRACK "):
        name = statement.removeprefix("TRACK ")
        statement = f"SELECT oplog.oplog_track_table('{name}', NULL)"
    connection.exec_driver_sql(statement.removeprefix("ROWS "), execution_options=NO_PARAMETERS)


class Evolved:
    """A database before, in and after a schema change."""

    def __init__(self, change: Change, engine: Engine, *, way: str = "types sync") -> None:
        self.change = change
        self.engine = engine
        self.way = way
        self.keyring = Keyring.generate()
        with engine.connect() as connection:
            version = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
        if int(version) < change.server * 10_000:
            pytest.skip(f"no such statement before PostgreSQL {change.server}")
        run(engine, *split(change.before))
        self.old = self.open(engine)
        self.old.track()
        self.old.write(change.seed)
        self.before = self.old.copy()
        self.position = self.old.find_position()
        self.new = self.old

    def open(self, engine: Engine) -> Application:
        """An application with the models of now."""
        return Application(engine, self.keyring, self.change.untracked, self.change.loose)

    def migrate(self, between: Callable[[int], None] = lambda _: None) -> None:
        """Run and note the change; `between` is called after each of its transactions."""
        groups = list(group(self.change))
        first, *self.writes = split(self.change.writes)
        for number, (ddl, logged) in enumerate(groups, 1):
            last = number == len(groups)
            replaced = self.change.replaced if last else ()
            self._run_group(ddl, replaced)
            self.new = self.open(self.engine)
            self._note_afterwards(replaced, first=first if last else logged)
            if logged and not self._noted_by_writer:
                self.new.write(logged)
            if last and not self._noted_by_writer:
                self.writes = [first, *self.writes]
            between(number)

    def migrate_and_wait(self) -> None:
        """Run the change; its last transaction is not noted."""
        groups = list(group(self.change))
        self.writes = split(self.change.writes)
        for number, (ddl, logged) in enumerate(groups, 1):
            alter(self.engine, ddl, alone=self.change.alone)
            self.new = self.open(self.engine)
            if number < len(groups):
                self._note_afterwards((), first="")
                self.new.write(logged)

    def note(self) -> None:
        """Note what `migrate_and_wait` left."""
        self._note_afterwards(self.change.replaced, first="")

    def write(self) -> None:
        """What applications with the new models write."""
        self.new.write(";".join(self.writes))

    def assert_past(self) -> None:
        """A replay to the position before the change gives the rows of then."""
        change = self.change
        before = retype(self.before, change.past)
        wanted = {name: drop_columns(one, change.computed) for name, one in before.items()}
        found = {
            name: drop_columns(one, change.computed)
            for name, one in self.new.replay(through=self.position).items()
            # A table that came later had no rows.
            if name in wanted or one.rows
        }
        assert_same(found, wanted)

    # -- noting ---------------------------------------------------------------------------

    @property
    def _noted_by_writer(self) -> bool:
        return self.way.startswith("first writer")

    @property
    def _notes_inside(self) -> bool:
        return self.way == "in the migration" and not self.change.alone

    def _run_group(self, ddl: list[str], replaced: tuple[str, ...]) -> None:
        if not self._notes_inside:
            alter(self.engine, ddl, alone=self.change.alone)
            return
        if replaced:
            with refused(replaced), self.engine.begin() as connection:
                self._run_and_note(connection, ddl)
        with self.engine.begin() as connection:
            self._run_and_note(connection, ddl, replaced=replaced)

    def _run_and_note(
        self, connection: Connection, ddl: list[str], *, replaced: tuple[str, ...] = ()
    ) -> None:
        for statement in ddl:
            execute(connection, statement)
        # A migration may run with models of any time; these are of before.
        for name in replaced:
            self.old.log.replace_type(connection, name, reason="the test says so")
        self.old.log.note_changes(connection)

    def _note_afterwards(self, replaced: tuple[str, ...], *, first: str) -> None:
        if self._notes_inside:
            return
        if self.change.anew and self._noted_by_writer:
            # All rows are to be logged anew, which is for the owner of the log.
            with pytest.raises(SchemaDriftError) as caught:
                self._note(first)
            assert "oplog types sync" in str(caught.value.hint)
            with self.engine.connect() as connection:
                self.new.log.store_types(connection)
        if replaced:
            with refused(replaced):
                self._note(first)
            for name in replaced:
                with self.engine.connect() as connection:
                    self.new.log.replace_type(connection, name, reason="the test says so")
        self._note(first)

    def _note(self, first: str) -> None:
        if self._noted_by_writer:
            if self.way.endswith("Core"):
                with self.new.sessions.begin() as session:
                    touch(session, [self.new.find(*place) for place in self.new.places])
            self.new.write(first)
            return
        with self.engine.connect() as connection:
            if self.way == "types sync":
                self.new.log.store_types(connection)
            else:
                self.new.log.note_changes(connection)

    # -- a process from before the change ---------------------------------------------------

    def write_as_before(
        self, table: str = "acct", *, how: str = "Core", process: Application | None = None
    ) -> list[BaseException]:
        """Write with the models of before; the errors that came of it."""
        process = process or self.old
        errors: list[BaseException] = []
        values = dict(self.change.old_row or OLD_ROW)
        found = process.metadata.tables.get(table)
        target = next(iter(process.metadata.tables.values())) if found is None else found
        values = {name: value for name, value in values.items() if name in target.columns}
        for write in list_writes(target, values, how=how):
            for _ in range(2):
                try:
                    with process.sessions.begin() as session:
                        write(session)
                    break
                except (OplogError, DBAPIError) as error:
                    errors.append(error)
                    if not isinstance(error, SchemaChangedError):
                        break
        return errors


@contextmanager
def refused(replaced: tuple[str, ...]) -> Iterator[None]:
    """Noting is refused, and the hint is the line to add."""
    with pytest.raises(SchemaDriftError) as caught:
        yield
    hint = str(caught.value.hint)
    assert "op.replace_type(" in hint
    assert any(name in hint for name in replaced)
