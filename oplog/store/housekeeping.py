"""SQL of what the owner does for a log now and then: locks put away, older rows checked."""

from __future__ import annotations

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from oplog.postgres.quoting import quote, quote_for_driver
from oplog.schema.locks import KEPT_LOCKS
from oplog.schema.row_checks import CheckFault, find_check_faults


def remove_idle_locks(connection: Connection, schema: str, *, limit: int) -> int:
    """Remove rows of `oplog_lock` that nobody holds or waits for, at most so many; how many.

    A row that is held is passed over. A transaction that asks for one that is being removed waits
    for this one to end, and makes the row anew.
    """
    s = quote_for_driver(schema)
    kept = (
        "SELECT pg_catalog.sha256(pg_catalog.convert_to(k.name, 'UTF8')) FROM ("
        "SELECT pg_catalog.unnest(%s::text[]) UNION ALL "
        f"SELECT pg_catalog.concat('archive/', a.archive_id) FROM {s}.oplog_archive a UNION ALL "
        "SELECT pg_catalog.concat('archive/', pg_catalog.substr(pg_catalog.encode("
        "pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat('snapshot/', a.archive_id), "
        f"'UTF8')), 'hex'), 1, 32)::uuid) FROM {s}.oplog_archive a) AS k(name)"
    )
    done = connection.exec_driver_sql(
        f"WITH idle AS MATERIALIZED (SELECT l.name FROM {s}.oplog_lock l "
        f"WHERE l.name <> ALL (ARRAY({kept})) LIMIT %s FOR UPDATE SKIP LOCKED) "
        f"DELETE FROM {s}.oplog_lock l USING idle WHERE l.name = idle.name",
        (list(KEPT_LOCKS), limit),
    )
    return int(done.rowcount)


def may_remove_locks(connection: Connection, schema: str) -> bool:
    """Whether this role may: that of the log's owner, and its members."""
    return bool(
        connection.exec_driver_sql(
            "SELECT pg_catalog.has_table_privilege(c.oid, 'SELECT') "
            "AND pg_catalog.has_table_privilege(c.oid, 'DELETE') "
            "FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(%s)",
            (f"{quote(schema)}.oplog_lock",),
        ).scalar()
    )


def list_row_checks(connection: Connection, schema: str) -> dict[tuple[str, str], str]:
    """The CHECK constraints of tables of `schema`, by table and name, as PostgreSQL prints them.

    Those of partitions are their parents'. A partition that `prune` drops meanwhile is still in the
    snapshot, and PostgreSQL fails to print a constraint of it: "could not open relation".
    """
    rows = connection.exec_driver_sql(
        "SELECT c.relname::text, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid) "
        "FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND k.contype = 'c' AND NOT c.relispartition",
        (schema,),
    )
    return {(row[0], row[1]): row[2] for row in rows}


def list_unchecked(connection: Connection, schema: str) -> list[CheckFault]:
    """Constraints for which rows that were there before them were not checked."""
    found = find_check_faults(list_row_checks(connection, schema))
    return [fault for fault in found if fault.kind == "unchecked"]


def check_rows(connection: Connection, schema: str, constraint: CheckFault) -> bool:
    """Check a table's rows, while others write; False if one breaks the constraint.

    In the connection's transaction, which has to be rolled back then.
    """
    try:
        connection.exec_driver_sql(
            f"ALTER TABLE {quote_for_driver(schema)}.{constraint.table} "
            f"VALIDATE CONSTRAINT {constraint.name}"
        )
    except IntegrityError:
        return False
    return True
