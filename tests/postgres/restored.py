"""A second database, and what must be equal in both after a restore."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import sessionmaker

from oplog.facade import Oplog
from oplog.recovery import RestoreReport, restore_log
from tests.databases import fill_database
from tests.kept import KeptLog, open_log
from tests.logged import track
from tests.postgres.replay_models import Base, Bench
from tests.shelf import list_heads

LOG_ROWS = {
    "record": "position, record_id, format, key_id, data, parts, aggregates, versions, "
    "prev_hashes, metadata, record_hash, created_at, idempotency_key",
    "part": "position, number, first, data",
    "entry": "aggregate_name, version, position",
    "token": "token, position",
    "outcome": "record_id, position, idempotency_key, aggregates, versions, record_hash, metadata",
    "type": "type_name, revision, shape, descriptor",
    "key": "key_id, check_value",
    "log": "log_id",
}
DEFINITIONS = """
SELECT 'trigger', tgrelid::regclass::text, tgname, tgenabled::text || pg_get_triggerdef(t.oid)
  FROM pg_trigger t WHERE NOT tgisinternal
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname,
  concat_ws(' ', pg_get_constraintdef(oid), convalidated, obj_description(oid, 'pg_constraint'))
  FROM pg_constraint WHERE conrelid <> 0 AND connamespace IN
    ('public'::regnamespace, 'oplog'::regnamespace)
UNION ALL SELECT 'rule', ev_class::regclass::text, rulename, ev_enabled::text
  FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class
  WHERE relnamespace <> 'pg_catalog'::regnamespace AND rulename <> '_RETURN'
UNION ALL SELECT 'column', attrelid::regclass::text, attname,
  concat_ws(' ', attidentity, attnotnull, pg_get_expr(adbin, adrelid))
  FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
  WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'oplog'))
    AND attnum > 0
UNION ALL SELECT 'comment', 'oplog.oplog_record', '',
  obj_description('oplog.oplog_record'::regclass)
ORDER BY 1, 2, 3"""


def dump_log(connection: Connection) -> dict[str, list[Any]]:
    """Every row of the log's tables, in every column that a restore brings back, and the heads.

    Tickets are left out: an aggregate needs none before its next record.
    """
    dumped: dict[str, list[Any]] = {}
    for name, columns in LOG_ROWS.items():
        rows = connection.exec_driver_sql(f"SELECT {columns} FROM oplog.oplog_{name}")
        dumped[name] = sorted((tuple(row) for row in rows), key=repr)
    dumped["head"] = list_heads(connection)
    return dumped


def describe_tables(connection: Connection) -> list[Any]:
    """Triggers, constraints, rules, columns, and the version."""
    return list(connection.exec_driver_sql(DEFINITIONS).all())


def make_target(engine: Engine, bench: Bench) -> Bench:
    """The bench's tables, guarded, empty, in another database, with an application on it."""
    fill_database(engine, make_target, _create_guarded)
    log = Oplog(bench.log.catalog, keyring=bench.log.keyring)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return Bench(engine, log, sessions)


def _create_guarded(engine: Engine) -> None:
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        connection.exec_driver_sql("ALTER TABLE owner ALTER secret SET DEFAULT 'restored'")
    track(engine, *Base.metadata.sorted_tables)


def keep(bench: Bench) -> KeptLog:
    """The bench's whole log."""
    kept = KeptLog(bench.log.store)
    with bench.engine.connect() as connection:
        kept.take(connection)
    return kept


def restore(target: Bench, kept: KeptLog, **options: Any) -> RestoreReport:
    """Restore on a connection of an engine that no application knows."""
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return restore_log(
            connection,
            kept,
            log=open_log(target.log, kept),
            schema="oplog",
            **options,
        )


def empty(target: Bench) -> None:
    """Back to an empty, migrated database."""
    empty_tables(target.engine)


def empty_tables(engine: Engine) -> None:
    """Remove all rows, whatever guards them, but keep the log's identity."""
    with engine.begin() as connection:
        tables = connection.exec_driver_sql(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND (relnamespace = "
            "'public'::regnamespace OR relnamespace = 'oplog'::regnamespace AND relname <> "
            "'oplog_guard' AND relname <> 'oplog_log')"
        ).scalars()
        names = list(tables)
        for name in names:
            connection.exec_driver_sql(f"ALTER TABLE {name} DISABLE TRIGGER USER")
        connection.exec_driver_sql(f"TRUNCATE {', '.join(names)}")
        for name in names:
            enabled = connection.exec_driver_sql(
                "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal",
                (name,),
            ).scalars()
            for trigger in list(enabled):
                connection.exec_driver_sql(f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}")
