"""SQL on the partitions of the log's large tables: which there are, made ahead, and dropped.

Bounds are read from the catalog. A partition that is dropped is gone for every snapshot at once,
also for one that was taken before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import double_percent, quote, quote_for_driver
from oplog.schema.partitions import PARTITION_PATTERN, PARTITIONED

LOCK_MILLISECONDS = 500
"""How long dropping waits for a table: everybody who comes meanwhile waits behind it.

Less than the server's `deadlock_timeout`: of two that wait for each other this one gives up.
"""


class Partition(NamedTuple):
    """Positions `first` to `last`, and the quoted names of the tables that hold them."""

    first: int
    last: int
    record: str
    part: str
    token: str

    @property
    def tables(self) -> tuple[str, str, str]:
        """The names, in the order in which everybody locks the tables."""
        return (self.record, self.part, self.token)


class Contents(NamedTuple):
    """How many rows a partition has in each table."""

    records: int = 0
    parts: int = 0
    tokens: int = 0


class PartitionStore:
    """The partitions of the log in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._s = quote_for_driver(schema)

    # -- what is there --------------------------------------------------------------------

    def list_partitions(self, connection: Connection) -> list[Partition]:
        """Partitions that every table has with the same bounds, by rising position."""
        rows = connection.exec_driver_sql(
            "SELECT b.bounds[1]::bigint, b.bounds[2]::bigint - 1, "
            "pg_catalog.max(b.name) FILTER (WHERE b.parent = 'oplog_record'), "
            "pg_catalog.max(b.name) FILTER (WHERE b.parent = 'oplog_part'), "
            "pg_catalog.max(b.name) FILTER (WHERE b.parent = 'oplog_token') "
            "FROM (SELECT p.relname::text AS parent, pg_catalog.concat("
            "pg_catalog.quote_ident(n.nspname), '.', pg_catalog.quote_ident(c.relname)) AS name, "
            "pg_catalog.regexp_match(pg_catalog.pg_get_expr(c.relpartbound, c.oid), "
            r"'FROM \(''(\d+)''\) TO \(''(\d+)''\)') AS bounds "
            "FROM pg_catalog.pg_class p JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace "
            "JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid "
            "JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relnamespace = n.oid "
            "WHERE n.nspname = %s AND p.relname = ANY (%s::text[])) b "
            "WHERE b.bounds IS NOT NULL GROUP BY b.bounds "
            "HAVING pg_catalog.count(*) = pg_catalog.cardinality(%s::text[]) ORDER BY 1",
            (self._schema, list(_PARENTS), list(_PARENTS)),
        )
        return [Partition(*row) for row in rows]

    def read_position(self, connection: Connection) -> int:
        """The newest position that was drawn; 0 if none was."""
        return int(
            connection.exec_driver_sql(
                "SELECT CASE WHEN is_called THEN last_value ELSE 0 END "
                f"FROM {self._s}.oplog_position_seq"
            ).scalar_one()
        )

    def has_dropped(self, connection: Connection) -> bool:
        """Whether a partition is gone that this transaction's snapshot still shows.

        In a transaction with one snapshot (REPEATABLE READ) no partition is dropped afterwards,
        until it ends: the table of records stays locked against that.
        """
        # `to_regclass` looks at the catalog as it is now, and the query at that of the snapshot.
        return bool(
            connection.exec_driver_sql(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c "
                "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
                f"WHERE n.nspname = %s AND c.relispartition AND c.relname ~ '{PARTITION_PATTERN}' "
                "AND pg_catalog.to_regclass(pg_catalog.concat(pg_catalog.quote_ident(n.nspname), "
                "'.', pg_catalog.quote_ident(c.relname))) IS NULL) "
                f"OR EXISTS (SELECT FROM {self._s}.oplog_record r WHERE false)",
                (self._schema,),
            ).scalar_one()
        )

    # -- made ahead -----------------------------------------------------------------------

    def may_make(self, connection: Connection) -> bool:
        """Whether this role may make partitions: that of the log's owner, and its members."""
        return bool(
            connection.exec_driver_sql(
                "SELECT CASE WHEN pg_catalog.has_schema_privilege(%s, 'USAGE') "
                "THEN pg_catalog.has_function_privilege("
                "pg_catalog.to_regprocedure(%s), 'EXECUTE') END",
                (self._schema, f"{quote(self._schema)}.oplog_make_partitions(bigint)"),
            ).scalar_one()
        )

    def make_ahead(self, connection: Connection, position: int) -> int:
        """Make the partition of a position and the next, if they are missing; tables made."""
        found = connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_make_partitions(%s)", (position,)
        ).scalar_one()
        return int(found)

    # -- dropped --------------------------------------------------------------------------

    def limit_waiting(self, connection: Connection, milliseconds: int | None) -> None:
        """Let the transaction wait so long for each lock; None for as long as the session does."""
        limit = "DEFAULT" if milliseconds is None else f"{milliseconds:d}"
        connection.exec_driver_sql(f"SET LOCAL lock_timeout TO {limit}")

    def close(self, connection: Connection, partition: Partition) -> None:
        """Let nobody write into a partition until the transaction ends; readers go on."""
        names = double_percent(", ".join(partition.tables))
        connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE MODE")

    def is_empty(self, connection: Connection, partition: Partition) -> bool:
        """Whether a partition has no row in any table."""
        queries = [f"EXISTS (SELECT FROM {double_percent(name)})" for name in partition.tables]
        return not connection.exec_driver_sql(f"SELECT {' OR '.join(queries)}").scalar_one()

    def count(self, connection: Connection, partition: Partition) -> Contents:
        """What a partition holds."""
        queries = [f"(SELECT count(*) FROM {double_percent(name)})" for name in partition.tables]
        row = connection.exec_driver_sql(f"SELECT {', '.join(queries)}").one()
        return Contents(*row)

    def drop(self, connection: Connection, partitions: Sequence[Partition]) -> None:
        """Drop partitions, whatever is in them. Nobody reads or writes the log meanwhile."""
        # Every table before any of its partitions, and in the order in which a writer takes them.
        parents = ", ".join(f"ONLY {self._s}.{name}" for name in _PARENTS)
        connection.exec_driver_sql(f"LOCK TABLE {parents} IN ACCESS EXCLUSIVE MODE")
        names = double_percent(", ".join(name for one in partitions for name in one.tables))
        connection.exec_driver_sql(f"DROP TABLE {names}")


def list_partition_names(connection: Connection, schema: str) -> list[str]:
    """Names of the partitions of the log in `schema`, also of those that were detached."""
    rows = connection.exec_driver_sql(
        "SELECT c.relname::text FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname ~ '{PARTITION_PATTERN}' "
        "ORDER BY 1",
        (schema,),
    )
    return list(rows.scalars())


_PARENTS = tuple(f"oplog_{name}" for name in PARTITIONED)
