"""A log copied to another server, as a dump of everything does it, without the program for it."""

from __future__ import annotations

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from tests.postgres.replay_models import Base, Bench, make_bench

LOG = "oplog"
_TABLES = (
    "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('oplog', 'public') "
    "AND c.relkind = 'r' AND c.relpersistence = 'p' ORDER BY 1"
)
_SEQUENCES = (
    "SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences "
    "WHERE schemaname IN ('oplog', 'public') AND last_value IS NOT NULL"
)
_COMMENT = "SELECT obj_description('oplog.oplog_log'::regclass)"
_STORED = (
    "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute "
    "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
)


def copy_database(source: Engine, target: Engine) -> None:
    """Give a migrated database on another server every row, and the log's comment, of `source`."""
    Base.metadata.create_all(target)
    with source.connect() as here, target.begin() as there:
        names = list(
            here.exec_driver_sql(_TABLES, execution_options={"no_parameters": True}).scalars()
        )
        for name in names:
            there.exec_driver_sql(f"ALTER TABLE {name} DISABLE TRIGGER ALL")
        there.exec_driver_sql(f"TRUNCATE {', '.join(names)}")
        for name in names:
            _copy(here, there, name)
        for name in names:
            _enable(there, name)
        for name, value in here.exec_driver_sql(
            _SEQUENCES, execution_options={"no_parameters": True}
        ):
            there.exec_driver_sql("SELECT setval(%s::regclass, %s)", (name, value))
        comment = here.exec_driver_sql(_COMMENT).scalar_one()
        there.exec_driver_sql(f"COMMENT ON TABLE oplog.oplog_log IS '{comment}'")


def _copy(here: sa.Connection, there: sa.Connection, name: str) -> None:
    columns = here.exec_driver_sql(_STORED, (name,)).scalar_one()
    given, taken = here.connection.driver_connection, there.connection.driver_connection
    assert isinstance(given, psycopg.Connection)
    assert isinstance(taken, psycopg.Connection)
    with (
        given.cursor() as reading,
        taken.cursor() as writing,
        reading.copy(f"COPY {name} ({columns}) TO STDOUT".encode()) as lines,
        writing.copy(f"COPY {name} ({columns}) FROM STDIN".encode()) as copied,
    ):
        for line in lines:
            copied.write(line)


def _enable(there: sa.Connection, name: str) -> None:
    if not name.startswith(f"{LOG}."):
        there.exec_driver_sql(f"ALTER TABLE {name} ENABLE TRIGGER ALL")
    triggers = there.exec_driver_sql(
        "SELECT quote_ident(tgname) FROM pg_trigger WHERE tgrelid = %s::regclass "
        "AND NOT tgisinternal",
        (name,),
    ).scalars()
    for trigger in list(triggers):
        there.exec_driver_sql(f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}")


def open_copy(engine: Engine, original: Bench) -> Bench:
    """The application of `original` on a copy of its database."""
    return make_bench(engine, original.log.keyring)


def age(engine: Engine, ids: int) -> None:
    """Let a server give out so many transaction ids."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(
            f"DO $$ BEGIN FOR i IN 1..{ids} LOOP PERFORM pg_current_xact_id(); COMMIT; "
            "END LOOP; END $$"
        )
