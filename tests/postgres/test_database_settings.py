"""Databases set up in odd ways: the log is the same in each, or refuses clearly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DataError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import oplog.migration  # noqa: F401 - its operations
from oplog.errors import ConfigurationError
from tests.concurrency.workload import consume
from tests.logged import LoggedDatabase, open_logged
from tests.support import administer, install_log

pytestmark = pytest.mark.postgres

SETTINGS = {
    "texts in the German way": (
        "bytea_output = escape",
        "datestyle = German",
        "intervalstyle = iso_8601",
        "extra_float_digits = -15",
        "timezone = 'Asia/Kathmandu'",
        "xmloption = document",
    ),
    "texts in the SQL way": (
        "datestyle = 'SQL, DMY'",
        "intervalstyle = sql_standard",
        "extra_float_digits = 3",
        "timezone = '<-07>+07:30'",
        "lc_messages = 'C'",
    ),
    "texts in the Postgres way": (
        "datestyle = 'Postgres'",
        "intervalstyle = postgres_verbose",
        "timezone = 'America/St_Johns'",
        "backslash_quote = off",
        "escape_string_warning = off",
    ),
    "read committed, no messages": (
        "default_transaction_isolation = 'read committed'",
        "client_min_messages = error",
        "transform_null_equals = on",
    ),
    "repeatable read, all messages": (
        "default_transaction_isolation = 'repeatable read'",
        "client_min_messages = debug5",
        "row_security = off",
    ),
    "serializable, deferrable": (
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "plan_cache_mode = force_generic_plan",
        "track_activities = off",
    ),
    "columns before variables": (
        "plpgsql.variable_conflict = use_column",
        "plpgsql.extra_errors = 'all'",
    ),
    "variables before columns": ("plpgsql.variable_conflict = use_variable",),
    "search_path elsewhere": ("search_path = elsewhere, public",),
    "search_path with decoys": ("search_path = decoy, pg_catalog, public",),
    "search_path into the log": ("search_path = oplog, public",),
}
REFUSED = {
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
}
DECOYS = (
    "current_setting(text)",
    "current_setting(text, boolean)",
    "set_config(text, text, boolean)",
    "sha256(bytea)",
    "convert_to(text, name)",
    "now()",
    "clock_timestamp()",
    "pg_current_snapshot()",
    "pg_current_xact_id()",
    "pg_current_xact_id_if_assigned()",
    "pg_visible_in_snapshot(xid8, pg_snapshot)",
    "quote_ident(text)",
    "array_length(anyarray, integer)",
    "unnest(anyarray)",
    "to_regclass(text)",
    "format_type(oid, integer)",
    "hashtextextended(text, bigint)",
    "int8send(bigint)",
    "nextval(regclass)",
    "current_query()",
)
"""Functions of the server that a schema found first has as well, and that only raise."""


class Base(DeclarativeBase):
    pass


class Sample(Base):
    __tablename__ = "sample"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    raw: Mapped[bytes | None]
    double: Mapped[float | None] = mapped_column(sa.Double)
    single: Mapped[float | None] = mapped_column(sa.REAL)
    exact: Mapped[Decimal | None] = mapped_column(sa.Numeric)
    moment: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    clock: Mapped[datetime | None]
    day: Mapped[date | None]
    span: Mapped[timedelta | None]
    words: Mapped[list[str | None] | None] = mapped_column(pg.ARRAY(sa.Text))
    spans: Mapped[list[timedelta] | None] = mapped_column(pg.ARRAY(sa.Interval))
    days: Mapped[Any] = mapped_column(pg.DATERANGE, nullable=True)
    document: Mapped[Any] = mapped_column(pg.JSONB, nullable=True)
    kept: Mapped[float] = mapped_column(sa.Double, server_default=sa.text("1e0 / 3"))


ODD = "back\\slash 'quote' \"double\" %s :x E'\\n' /*oplog:1*/ -- \x01"
VALUES: dict[str, Any] = {
    "name": ODD,
    "raw": bytes(range(256)),
    "double": 0.1 + 0.2,
    "single": 0.10000000149011612,
    "exact": Decimal("1.10"),
    "moment": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    "clock": datetime(2026, 1, 2, 3, 4, 5, 678901),
    "day": date(2026, 2, 1),
    "span": timedelta(days=-1, hours=2, microseconds=3),
    "words": ["NULL", None, "", 'a"b\\c', "{}"],
    "spans": [timedelta(days=-1, seconds=1)],
    "document": {"a": [1, None, "\\u00e9 \\ '"]},
}


@contextmanager
def make_database(
    server: URL, *, settings: Sequence[str] = (), options: str = ""
) -> Iterator[Engine]:
    name = f"oplog_test_{uuid4().hex[:12]}"
    administer(
        server,
        f"CREATE DATABASE {name} {options}",
        *(f"ALTER DATABASE {name} SET {setting}" for setting in settings),
    )
    engine = sa.create_engine(server.set(database=name))
    try:
        yield engine
    finally:
        engine.dispose()
        administer(server, f"DROP DATABASE {name} WITH (FORCE)")


def open_samples(engine: Engine) -> LoggedDatabase:
    raising = "LANGUAGE plpgsql AS $$ BEGIN RAISE 'decoy'; END $$"
    with engine.begin() as connection:
        # What the application's own tables and the log's are made in is not the question.
        connection.exec_driver_sql("SET LOCAL search_path = public")
        connection.exec_driver_sql("CREATE SCHEMA elsewhere; CREATE SCHEMA decoy")
        connection.exec_driver_sql("CREATE TABLE elsewhere.oplog_entry (id integer)")
        for decoy in DECOYS:
            connection.exec_driver_sql(f"CREATE FUNCTION decoy.{decoy} RETURNS integer {raising}")
        Base.metadata.create_all(connection)
        install_log(connection)
    return open_logged(engine, Base, guarded=True)


def write_in_many_ways(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Sample(id=1, **VALUES, days=sa.text("'[2026-01-02,2026-02-01)'")))
        db.log.annotate(session, actor=ODD)
    with db.sessions.begin() as session:
        copied = "INSERT INTO sample SELECT 2, name, raw, double, single, exact, moment, clock, "
        copied += "day, span, words, spans, days, document FROM sample"
        session.execute(sa.text(copied))
    with db.sessions.begin() as session:
        session.execute(sa.update(Sample).values(name=Sample.name + "'\\", kept=Sample.kept / 7))
    with db.sessions.begin() as session:
        session.execute(sa.insert(Sample), [{"id": n, "name": f"{n}"} for n in (3, 4)])
        session.execute(sa.text("DELETE FROM sample WHERE id = 3"))


def assert_whole(db: LoggedDatabase) -> None:
    """Every way of reading tells what was written."""
    entries = db.read()
    first, second = (entry.operations[0].fields for entry in entries[:2])
    for name, value in VALUES.items():
        assert (name, first[name]) == (name, value)
        assert (name, second[name]) == (name, value)
    assert first["kept"] == second["kept"] == 1 / 3
    assert entries[0].metadata == {"actor": [ODD]}
    assert db.tell() == [
        *("CREATE sample 1", "CREATE sample 2", "UPDATE sample 1", "UPDATE sample 2"),
        "CREATE sample 4",
    ]
    db.assert_replays()
    with db.engine.connect() as connection:
        db.log.replay(connection)
        found = db.log.diagnose(connection)
        (change,) = db.log.history(connection, Sample, 4)
        assert change.fields["name"] == "4"
        assert len(list(db.log.read(connection, metadata={"actor": ODD}))) == 1
    assert [f for f in found if f.severity == "problem" and f.what != "setting"] == []
    assert consume(db.log, db.engine) == [e.position for e in entries]
    with db.engine.connect() as connection:
        assert db.log.adopt(connection, again=True).rows == 3
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_of_a_database(server_url: URL, settings: tuple[str, ...]) -> None:
    with make_database(server_url, settings=settings) as engine:
        db = open_samples(engine)
        write_in_many_ways(db)
        assert_whole(db)


def add_by_orm(session: Session) -> None:
    session.add(Sample(id=1, name="x"))
    session.flush()


def add_by_text(session: Session) -> None:
    session.execute(sa.text("INSERT INTO sample (id, name) VALUES (1, 'x')"))
    session.commit()


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_change_what_sql_says(server_url: URL, name: str) -> None:
    with make_database(server_url) as engine:
        db = open_samples(engine)
        database = engine.url.database
        administer(server_url, f"ALTER DATABASE {database} SET {name} = {REFUSED[name]}")
        engine.dispose()
        for write in (add_by_orm, add_by_text):
            with (
                db.sessions() as session,
                pytest.raises(ConfigurationError, match=f"^{name} is {REFUSED[name]}: ") as refused,
            ):
                write(session)
            assert f"ALTER DATABASE {database} SET {name} = " in refused.value.hint.replace('"', "")
            assert db.count("sample") == db.count("oplog.oplog_entry") == 0
            db.assert_pool_is_clean()
        with engine.connect() as connection:
            found = db.log.diagnose(connection)
            assert ("problem", "setting", name) in {(f.severity, f.what, f.where) for f in found}
            with pytest.raises(ConfigurationError, match=name):
                Operations(MigrationContext.configure(connection)).create_oplog(1, schema="other")  # type: ignore[attr-defined]
        administer(server_url, f"ALTER DATABASE {database} RESET {name}")
        engine.dispose()
        with db.sessions.begin() as session:
            add_by_orm(session)
        db.assert_replays()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encodings(server_url: URL, encoding: str) -> None:
    """What the database can hold is logged; what it cannot is refused, never changed."""
    options = f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    with make_database(server_url, options=options) as made:
        # Without it SQLAlchemy does not even connect to a database without an encoding.
        engine = sa.create_engine(made.url.update_query_dict({"client_encoding": "utf8"}))
        db = open_samples(engine)
        with db.sessions.begin() as session:
            session.add(Sample(id=1, name="\u00e9"))
            db.log.annotate(session, actor="\u00e9")
        with db.sessions.begin() as session:
            session.execute(sa.text("UPDATE sample SET name = name || '\u00fc'"))
        assert db.read_last().fields == {"name": "\u00e9\u00fc"}
        assert db.read()[0].metadata == {"actor": ["\u00e9"]}
        # LATIN1 has no such letter; in SQL_ASCII the byte alone is no letter at all.
        odd = "'\u3042'" if encoding == "LATIN1" else "chr(255)"
        for write in (f"UPDATE sample SET name = {odd}", f"INSERT INTO sample VALUES (2, {odd})"):
            with pytest.raises(DataError), db.sessions.begin() as session:
                session.execute(sa.text(write))
            db.assert_pool_is_clean()
        assert len(db.read()) == 2
        db.assert_replays()
        with engine.connect() as connection:
            db.log.replay(connection)
            found = db.log.diagnose(connection)
        assert ("problem", "server_encoding") in {(f.severity, f.where) for f in found}
        engine.dispose()
