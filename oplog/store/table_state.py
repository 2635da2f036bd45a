"""A short text that is the same as long as a database, its log and its tables are the same.

For what was read of them to be used once more, by another engine of the process.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import quote_for_driver
from oplog.postgres.table_form import is_created_trigger

_FIRST_OID = 16384
"""Of objects that users made."""


def read_state(connection: Connection, schema: str) -> str:
    """Which database and log these are, and a digest of its tables, guards, triggers and types.

    Every row of the catalog that DDL writes gets another xmin, so nothing is compared by content.
    Tables that change without the log's doing are a reason to read anew, and no more.
    """
    s = quote_for_driver(schema)
    count = "pg_catalog.concat_ws(',', count(*), sum({0}.xmin::text::bigint), sum({0}.{1}::bigint))"
    of_class, of_trigger, of_key, of_label, of_column = (
        count.format(*one)
        for one in (("c", "oid"), ("g", "oid"), ("k", "oid"), ("e", "oid"), ("a", "attrelid"))
    )
    found = connection.exec_driver_sql(
        f"""SELECT pg_catalog.concat_ws('/', i.system_identifier, d.oid,
  (SELECT l.log_id FROM {s}.oplog_log l), (SELECT p.epoch FROM {s}.oplog_epoch p),
  (SELECT count(*) FROM {s}.oplog_type),
  (SELECT {of_class} FROM pg_catalog.pg_class c
   WHERE c.oid >= {_FIRST_OID} AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'),
  (SELECT {of_column} FROM pg_catalog.pg_attribute a WHERE a.attrelid IN (
     SELECT g.tgrelid FROM pg_catalog.pg_trigger g
     WHERE g.oid >= {_FIRST_OID} AND {is_created_trigger("g")})),
  (SELECT {of_trigger} FROM pg_catalog.pg_trigger g WHERE g.oid >= {_FIRST_OID}),
  (SELECT {of_key} FROM pg_catalog.pg_constraint k WHERE k.oid >= {_FIRST_OID}),
  (SELECT {of_label} FROM pg_catalog.pg_enum e WHERE e.oid >= {_FIRST_OID}))
FROM pg_catalog.pg_control_system() i, pg_catalog.pg_database d
WHERE d.datname = pg_catalog.current_database()"""
    )
    return str(found.scalar_one())
