"""A logged table for one type of column, ways to write into it, and judges of what was logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, load_only, registry, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.schema.tables import (
    track_statements,
)
from oplog.value import TEXT_SETTINGS
from tests.databases import fill_database
from tests.property.type_samples import TYPES, Sample
from tests.property.type_samples_made import NEVER_KEYS
from tests.support import assert_replays

AWKWARD = "v\"'%s%(x)s é{:} " + "n" * 46
"""A column's name of 63 bytes."""

APPLICATION_SETTINGS = {
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "timezone": "America/New_York",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
}
"""What an application may have set; it must not reach the log."""


class Spelled(sa.types.UserDefinedType[Any]):
    """A type of which SQLAlchemy knows nothing but how SQL spells it."""

    cache_ok = True

    def __init__(self, sql: str) -> None:
        self.sql = sql

    def get_col_spec(self, **_kw: Any) -> str:
        return self.sql


@dataclass(frozen=True)
class TypeTable:
    """A database with logged tables for one type.

    Rows of `t`: `v` is the type under an awkward name, given as text; `p` as a model would
    declare it, if it would; `d` has a default; `n` is never given anything. Tables `k` and
    `q`, where Postgres has keys of the type, have it as their primary key `id`, given as text
    and as Python values.
    """

    engine: Engine
    log: Oplog
    sessions: sessionmaker[Session]
    row: Any
    sample: Sample
    tables: Mapping[str, sa.Table]

    @property
    def table(self) -> sa.Table:
        """Table `t`."""
        return self.tables["t"]


class Way(Protocol):
    """A way to write."""

    def __call__(
        self, session: Session, db: TypeTable, texts: Mapping[int, str | None], *, fresh: bool
    ) -> None:
        """Give column `v` of rows by id the values that texts spell; insert them if `fresh`."""


def open_table(engine: Engine, sample: Sample) -> TypeTable:
    """Create the types and the tables, and attach a log."""
    fill_database(engine, open_table, _create_types)
    require(engine, sample.needs)
    typed = sample.sql
    literal = "E" + quote_literal(sample.always[0].replace("\\", "\\\\"))
    always = "" if sample.nullable else f"DEFAULT {literal}"
    keyed = [] if typed in NEVER_KEYS else ["k"] if sample.column is None else ["k", "q"]
    execute(
        engine,
        f"CREATE TABLE t (id integer PRIMARY KEY, {quote(AWKWARD)} {typed} {always}, "
        f"p {typed} {always}, d {typed} DEFAULT {literal}, n {typed} {always})",
        *(f"CREATE TABLE {name} (id {typed} PRIMARY KEY, note text)" for name in keyed),
        # The keyed tables are for the application's own capture.
        *track_statements(["t"]),
    )
    metadata = sa.MetaData()
    given = sa.FetchedValue()
    natural = sample.column or Spelled(typed)
    table = sa.Table(
        "t",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(AWKWARD, Spelled(typed), given, key="v"),
        sa.Column("p", natural, given),
        sa.Column("d", Spelled(typed), given),
        sa.Column("n", Spelled(typed), given),
    )
    for name in keyed:
        key = natural if name == "q" else Spelled(typed)
        sa.Table(name, metadata, sa.Column("id", key, primary_key=True), sa.Column("note", sa.Text))
    row: Any = type("Row", (), {"__table__": table})
    registry(metadata=metadata).map_imperatively(row, table, eager_defaults=False)
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return TypeTable(engine, log, sessions, row, sample, metadata.tables)


def _create_types(engine: Engine) -> None:
    execute(engine, *TYPES)


def execute(engine: Engine, *statements: str) -> None:
    """Run statements as they are, behind the log's back."""
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def require(engine: Engine, needs: str) -> None:
    """Skip unless the server has an extension, or was built with XML."""
    if not needs:
        return
    if needs == "xml":
        with engine.connect() as connection:
            try:
                connection.exec_driver_sql("SELECT '<a/>'::xml")
            except sa.exc.DBAPIError:
                pytest.skip("this server was built without libxml")
        return
    with engine.begin() as connection:
        found = connection.exec_driver_sql(
            "SELECT 1 FROM pg_available_extensions WHERE name = %s", (needs,)
        ).one_or_none()
        if found is None:
            pytest.skip(f"this server has no extension {needs}")
        connection.exec_driver_sql(f"CREATE EXTENSION {needs}")


# -- ways to write --------------------------------------------------------------------------


def find(session: Session, db: TypeTable, id_: int) -> Any:
    """The row, without the values that Python could not hold."""
    return session.get_one(db.row, id_, options=[load_only(db.row.id)])


def write_parameters(
    session: Session, db: TypeTable, texts: Mapping[int, str | None], *, fresh: bool
) -> None:
    """Objects in the session; the text itself is the parameter."""
    for id_, text in texts.items():
        if fresh:
            session.add(db.row(id=id_, v=text))
        else:
            find(session, db, id_).v = text


def write_expressions(
    session: Session, db: TypeTable, texts: Mapping[int, str | None], *, fresh: bool
) -> None:
    """Objects in the session whose value is an SQL expression, under settings of their own."""
    for name, value in APPLICATION_SETTINGS.items():
        session.execute(sa.select(sa.func.set_config(name, value, sa.true())))
    typed = Spelled(db.sample.sql)
    spelled: Any = {
        id_: sa.null() if text is None else sa.cast(sa.literal(text, sa.Text()), typed)
        for id_, text in texts.items()
    }
    write_parameters(session, db, spelled, fresh=fresh)


def write_lists(
    session: Session, db: TypeTable, texts: Mapping[int, str | None], *, fresh: bool
) -> None:
    """Core statements, the insert for all rows at once."""
    if fresh:
        rows = [{"id": id_, "v": text} for id_, text in texts.items()]
        session.execute(sa.insert(db.table), rows)
        return
    for id_, text in texts.items():
        session.execute(sa.update(db.table).where(db.table.c.id == id_).values(v=text))


def write_text(
    session: Session, db: TypeTable, texts: Mapping[int, str | None], *, fresh: bool
) -> None:
    """SQL as text, under settings of its own, captured from the guard's images."""
    connection = session.connection()
    for name, value in APPLICATION_SETTINGS.items():
        connection.exec_driver_sql("SELECT set_config(%s, %s, true)", (name, value))
    column = quote(AWKWARD).replace("%", "%%")
    typed = f"CAST(%s AS {db.sample.sql})"
    statement = (
        f"INSERT INTO t ({column}, id) VALUES ({typed}, %s)"
        if fresh
        else f"UPDATE t SET {column} = {typed} WHERE id = %s"
    )
    for id_, text in texts.items():
        connection.exec_driver_sql(statement, (text, id_))


WAYS: list[Way] = [write_parameters, write_expressions, write_lists, write_text]
"""Every way in which `v` is written; one more is a function more."""


# -- judges ---------------------------------------------------------------------------------


def assert_exact(db: TypeTable, *, rows: int) -> None:
    """The product says so, and so do Postgres' own bytes and text of replayed tables."""
    # Ends in `verify`; before, it folds the log by hand and compares what travels.
    assert_replays(db.log, db.engine)
    with db.engine.connect() as connection:
        db.log.replay(connection, into="again")
    with db.engine.connect() as connection:
        for table in db.tables:
            assert compare(connection, table) == []
        assert connection.exec_driver_sql("SELECT count(*) FROM again.t").scalar() == rows


def compare(connection: Connection, table: str) -> list[Any]:
    """Rows that are not, byte for byte and letter for letter, what replay made of them."""
    pin_settings(connection)
    return list(
        connection.exec_driver_sql(
            f"SELECT l::text, r::text FROM public.{table} l FULL JOIN again.{table} r USING (id) "
            "WHERE l.id IS NULL OR r.id IS NULL OR NOT record_image_eq(l, r) "
            'OR l::text COLLATE "C" IS DISTINCT FROM r::text COLLATE "C"'
        )
    )


def pin_settings(connection: Connection) -> None:
    """Fix how values print, for the transaction."""
    for name, value in TEXT_SETTINGS.items():
        connection.exec_driver_sql("SELECT set_config(%s, %s, true)", (name, value))
