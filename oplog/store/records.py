"""Writing and reading the log: schema, types, keys, records, tickets.

Takes a SQLAlchemy connection and plain values, gives back plain values. Statements go
through `exec_driver_sql`: an ORM-level execute would re-enter the session's own events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.errors import SchemaVersionError
from oplog.payload.shape import Shape
from oplog.postgres.binary_message import (
    BOOL,
    BYTEA,
    BYTEA_ARRAY,
    INT2,
    INT4_ARRAY,
    INT8,
    INT8_ARRAY,
    OID_ARRAY,
    TEXT,
    TEXT_ARRAY,
    UUID_OID,
    Message,
    Parameter,
    read_fields,
    read_numbers,
)
from oplog.postgres.driver import require_driver
from oplog.postgres.quoting import quote, quote_for_driver, quote_literal
from oplog.postgres.standby import ALL_VISIBLE, iterate_positions
from oplog.schema.partitions import PARTITION_PATTERN
from oplog.store.entry_filter import bind_filter
from oplog.store.heads import select_heads
from oplog.store.home import Identity, require_defined, require_home
from oplog.store.links import list_broken_links
from oplog.store.name_check import bind_call
from oplog.store.revisions import insert_type, list_types, register_type
from oplog.store.rows import (
    CREATED,
    RECORD_COLUMNS,
    BrokenLink,
    EntryFilter,
    NewRecord,
    Part,
    StoredRecord,
    flatten_metadata,
    make_stored,
    measure_record,
    read_microseconds,
    read_uuid,
)
from oplog.store.type_store import TypeStore
from oplog.store.version import parse_version, read_comment

_WITH_OWN = """pg_catalog.concat(pg_catalog.pg_snapshot_xmin(s), ':', own::text::bigint + 1, ':',
  pg_catalog.array_to_string(ARRAY(
    SELECT x::text::bigint FROM pg_catalog.pg_snapshot_xip(s) x UNION ALL
    SELECT pg_catalog.generate_series(
      pg_catalog.pg_snapshot_xmax(s)::text::bigint, own::text::bigint - 1) ORDER BY 1), ','))"""
"""The snapshot `s` with the transaction `own`, which began after all that `s` knows of: those in
between are not over."""
PAGE_ENTRIES = 4000
"""Most entries read at once, more only for a single larger record."""
PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of parts and metadata read at once, more only for a single larger record."""
_PARTS = StoredRecord._fields.index("parts") + 1
"""Where `RECORD_COLUMNS` have the number of parts, after the first one."""
_PLACES = ", ".join(f"${number}" for number in range(1, 15))
_ANSWER_NONE = "SELECT NULL::bigint[], NULL::bytea"


class Store:
    """The log's tables in one schema; `TablesLog` binds its reading half to a connection."""

    def __init__(self, schema: str, *, asynchronous_commit: bool = False) -> None:
        self.schema = schema
        self._asynchronous_commit = asynchronous_commit
        self._s = quote_for_driver(schema)
        # A message knows no percent signs.
        s = quote(schema)
        # One composite value: as a table of columns the same takes the server longer to plan.
        self._append = f"SELECT {s}.oplog_append("
        self._settle = f"{_ANSWER_NONE} FROM {s}.oplog_settle("
        self.changes = TypeStore(schema)
        """Schema changes of the logged tables."""

    # -- schema ---------------------------------------------------------------------------

    def read_version(self, connection: Connection) -> int | None:
        """The installed schema version; None when the log's tables are not there."""
        return parse_version(read_comment(connection, self.schema))

    def require_current(self, connection: Connection) -> None:
        """Raise `SchemaVersionError` with the exact line to add unless the schema is current.

        `ConfigurationError` for a driver that the log does not work with.
        """
        require_driver(connection)
        require_defined(connection, self.schema)

    def require_home(self, connection: Connection) -> Identity:
        """`require_current`, and `ForeignServerError` where transaction ids mean something else.

        Required where records are chosen by which transactions are visible; writing does not.
        Gives the identity of this database, which may be a copy on the server that the log was
        written on.
        """
        require_driver(connection)
        return require_home(connection, self.schema)

    def read_log_id(self, connection: Connection) -> UUID:
        """The identity of this log, bound into every sealed part."""
        found = connection.exec_driver_sql(f"SELECT log_id FROM {self._s}.oplog_log").scalars()
        ids = [read_uuid(found_id) for found_id in found]
        if len(ids) != 1:
            raise SchemaVersionError(
                f"schema {self.schema!r} has {len(ids)} rows in oplog_log, not one",
                hint="the log's tables were altered by hand, or rows of a dump were loaded into a "
                "log that was there: load a whole dump, tables and rows, into an empty database",
            )
        return ids[0]

    # -- types and keys -------------------------------------------------------------------

    def list_types(self, connection: Connection) -> list[Shape]:
        """Every stored revision of every type, revisions rising."""
        return list_types(connection, self._s)

    def insert_type(self, connection: Connection, shape: Shape) -> bool:
        """Store a revision and its numbers; False when nothing of it was new."""
        return insert_type(connection, self._s, shape)

    def register_type(self, connection: Connection, shape: Shape) -> bool:
        """Store a revision for a table of this database; False when another one was first."""
        return register_type(connection, self._s, shape)

    def read_key_check(self, connection: Connection, key_id: str) -> bytes | None:
        """The check value of a data key, or None if the log has never seen its id."""
        found = connection.exec_driver_sql(
            f"SELECT check_value FROM {self._s}.oplog_key WHERE key_id = %s", (key_id,)
        ).scalar()
        return None if found is None else bytes(found)

    def insert_key(self, connection: Connection, key_id: str, *, check_value: bytes) -> None:
        """Remember a data key's id; a no-op if it is known."""
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_key (key_id, check_value) VALUES (%s, %b) "
            "ON CONFLICT DO NOTHING",
            (key_id, check_value),
        )

    def register_key(self, connection: Connection, key_id: str, *, check_value: bytes) -> None:
        """Make a data key's id known to the log, as a role that seals with it."""
        connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_register_key(%s, %b)", (key_id, check_value)
        )

    def list_keys(self, connection: Connection) -> dict[str, bytes]:
        """Check values by key id."""
        rows = connection.exec_driver_sql(f"SELECT key_id, check_value FROM {self._s}.oplog_key")
        return {key_id: bytes(check) for key_id, check in rows}

    # -- writing --------------------------------------------------------------------------

    def bind_append(
        self,
        record: NewRecord,
        *,
        tally: int | None = None,
        named: Sequence[tuple[str, int]] = (),
    ) -> Message:
        """The message that redeems and appends.

        It answers with what `read_append` reads. `tally` is what the
        guards of the tables must have counted; None if there are none. Unless each of `named`, a
        quoted name of a table and its oid, means that table when the statement runs, it raises:
        the tally is then `OTHER_TABLE`.
        """
        created = all(version == CREATED for version in record.expected)
        more = record.parts[1:]
        known = record.known
        parameters = (
            Parameter(UUID_OID, record.record_id),
            Parameter(TEXT_ARRAY, record.aggregates),
            Parameter(INT8_ARRAY, None if created else record.expected),
            Parameter(BYTEA, record.parts[0].data),
            Parameter(INT4_ARRAY, [part.first for part in more] or None),
            Parameter(BYTEA_ARRAY, [part.data for part in more] or None),
            Parameter(INT2, record.format),
            Parameter(TEXT, record.key_id),
            Parameter(TEXT_ARRAY, flatten_metadata(record.metadata)),
            Parameter(TEXT, record.idempotency_key),
            Parameter(INT8, known.epoch),
            Parameter(OID_ARRAY, known.relations or None),
            Parameter(OID_ARRAY, known.labels or None),
            Parameter(INT8, known.form),
        )
        return bind_call(
            f"{self._append}{_PLACES}, ",
            parameters,
            tally=tally,
            named=named,
            last=Parameter(BOOL, self._asynchronous_commit),
        )

    @staticmethod
    def read_append(row: Sequence[bytes]) -> tuple[list[int] | None, bytes]:
        """The versions of a record's aggregates, None if all are 1, and its hash."""
        versions, record_hash = read_fields(row[0])
        return None if versions is None else read_numbers(versions), record_hash or b""

    def bind_settle(self, tally: int, *, named: Sequence[tuple[str, int]] = ()) -> Message:
        """The message of a transaction whose changes come to nothing; it answers with nothing."""
        return bind_call(self._settle, (), tally=tally, named=named)

    def read_tickets(self, connection: Connection, aggregates: Sequence[str]) -> dict[str, int]:
        """Versions by aggregate; one never written is left out."""
        rows = connection.exec_driver_sql(
            "SELECT a.name, coalesce(t.version, (SELECT e.version "
            f"FROM {self._s}.oplog_entry e WHERE e.aggregate_name = a.name "
            "ORDER BY e.version DESC LIMIT 1)) AS version "
            "FROM pg_catalog.unnest(%s::text[]) AS a(name) "
            f"LEFT JOIN {self._s}.oplog_ticket t ON t.aggregate_name = a.name",
            (list(aggregates),),
        )
        return {name: version for name, version in rows if version}

    # -- reading --------------------------------------------------------------------------

    def read_snapshot(self, connection: Connection) -> str:
        """The transaction's (or statement's) snapshot as text; on a standby `ALL_VISIBLE`.

        What the transaction itself has appended is in it.
        """
        found = connection.exec_driver_sql(
            "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN %s::text "
            f"WHEN own >= pg_catalog.pg_snapshot_xmax(s) THEN {_WITH_OWN} "
            "ELSE pg_catalog.pg_current_snapshot()::text END "
            "FROM pg_catalog.pg_current_snapshot() s, "
            "pg_catalog.pg_current_xact_id_if_assigned() own",
            (ALL_VISIBLE,),
        )
        return str(found.scalar())

    def read_page(
        self, connection: Connection, filter: EntryFilter, *, snapshot: str, after: int
    ) -> list[StoredRecord]:
        """Records visible in `snapshot` with a position over `after`, in causal order.

        Bounded in entries and bytes; an empty page is the end.
        """
        where, values = bind_filter(self._s, filter)
        rows = connection.exec_driver_sql(
            f"SELECT p.* FROM (SELECT {RECORD_COLUMNS}, {sum_before(self._s)} "
            f"FROM {self._s}.oplog_record r WHERE r.position > %s "
            "AND pg_catalog.pg_visible_in_snapshot(r.transaction_id, %s::pg_snapshot) "
            f"AND {where} WINDOW w AS (ORDER BY r.position) "
            f"ORDER BY r.position LIMIT {PAGE_ENTRIES}) p WHERE p.bytes_before < {PAGE_BYTES} "
            f"AND p.entries_before < {PAGE_ENTRIES} ORDER BY p.position",
            (max(after, filter.after or 0), snapshot, *values),
        )
        return complete_records(connection, self._s, [row[:-2] for row in rows.fetchall()])

    def find_position(self, connection: Connection, at: datetime, *, snapshot: str) -> int:
        """The highest position up to which no record was recorded after `at`; 0 for none."""
        later = self.find_later(connection, at, snapshot=snapshot)
        found = connection.exec_driver_sql(
            f"SELECT max(position) FROM {self._s}.oplog_record "
            "WHERE (%s::bigint IS NULL OR position < %s) "
            "AND pg_catalog.pg_visible_in_snapshot(transaction_id, %s::pg_snapshot)",
            (later, later, snapshot),
        ).scalar()
        return int(found or 0)

    def find_later(self, connection: Connection, at: datetime, *, snapshot: str) -> int | None:
        """The lowest position recorded after `at`; None when there is none."""
        found: int | None = connection.exec_driver_sql(
            f"SELECT min(position) FROM {self._s}.oplog_record WHERE created_at > %s "
            "AND pg_catalog.pg_visible_in_snapshot(transaction_id, %s::pg_snapshot)",
            (at, snapshot),
        ).scalar()
        return found

    # -- checking -------------------------------------------------------------------------

    def list_broken_links(self, connection: Connection, *, limit: int = 20) -> list[BrokenLink]:
        """Gaps and false links in the aggregates' chains, and tickets that disagree with them.

        Compares stored hashes only; that each matches its record's bytes is checked when it
        is read. Of a pruned log an aggregate may begin at any version, and what is missing
        must be as many entries as were pruned; which ones, only the archive tells.
        """
        return list_broken_links(connection, self.schema, limit=limit)

    def read_status(self, connection: Connection) -> Mapping[str, Any]:
        """Counts and sizes for an operator: records, aggregates, last position, bytes, age."""
        row = connection.exec_driver_sql(
            f"""SELECT (SELECT count(*) FROM {self._s}.oplog_record) AS records,
  (SELECT count(*) FROM {self._s}.oplog_entry WHERE position > 0) AS entries,
  (SELECT count(*) FROM {select_heads(self._s)} h) AS aggregates,
  (SELECT coalesce(max(position), 0) FROM {self._s}.oplog_record) AS position,
  (SELECT (extract(epoch FROM max(created_at)) * 1000000)::bigint
   FROM {self._s}.oplog_record) AS recorded_at,
  (SELECT sum(pg_catalog.pg_total_relation_size(c.oid))::bigint FROM pg_catalog.pg_class c
   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = {quote_literal(self.schema).replace("%", "%%")} AND c.relkind = 'r'
     AND (c.relname ~ '{PARTITION_PATTERN}'
       OR c.relname IN ('oplog_entry', 'oplog_ticket', 'oplog_outcome'))) AS entry_bytes,
  (SELECT count(*) FROM {self._s}.oplog_type) AS type_revisions,
  (SELECT log_id FROM {self._s}.oplog_log) AS log_id"""
        )
        status = dict(row.mappings().one())
        recorded = status["recorded_at"]
        status["recorded_at"] = None if recorded is None else read_microseconds(recorded)
        return status

    def iterate(
        self, connection: Connection, filter: EntryFilter, *, snapshot: str
    ) -> Iterator[list[StoredRecord]]:
        """Pages of records in causal order, from one snapshot."""
        if snapshot == ALL_VISIBLE:
            yield from self._iterate_on_standby(connection, filter)
            return
        after = filter.after or 0
        while page := self.read_page(connection, filter, snapshot=snapshot, after=after):
            yield page
            after = page[-1].position

    def _iterate_on_standby(
        self, connection: Connection, filter: EntryFilter
    ) -> Iterator[list[StoredRecord]]:
        where, values = bind_filter(self._s, filter)
        pages = iterate_positions(
            connection,
            f"SELECT r.position, {measure_record(self._s)} FROM {self._s}.oplog_record r "
            f"WHERE r.position > %s AND {where} ORDER BY r.position",
            (filter.after or 0, *values),
            most=PAGE_ENTRIES,
            most_bytes=PAGE_BYTES,
        )
        for positions in pages:
            # Records never change: a later statement shows the same ones.
            yield read_records(connection, self._s, positions)


def sum_before(s: str) -> str:
    """Columns: bytes and entries of the records before `r` in window `w`.

    `s` is the quoted schema.
    """
    before = "OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    return (
        f"coalesce(sum({measure_record(s)}) {before}, 0)::bigint AS bytes_before, "
        f"coalesce(sum(pg_catalog.cardinality(r.aggregates)) {before}, 0)::bigint "
        "AS entries_before"
    )


def read_records(connection: Connection, s: str, positions: Sequence[int]) -> list[StoredRecord]:
    """Records by their positions, sorted by position; those that are not there are left out."""
    rows = connection.exec_driver_sql(
        f"SELECT {RECORD_COLUMNS} FROM {s}.oplog_record r "
        "WHERE r.position = ANY (%s::bigint[]) ORDER BY r.position",
        (list(positions),),
    )
    return complete_records(connection, s, rows.fetchall())


def complete_records(
    connection: Connection, s: str, rows: Sequence[Sequence[Any]]
) -> list[StoredRecord]:
    """Records of rows with `RECORD_COLUMNS`, with the parts that are not in their rows."""
    split = [row[0] for row in rows if row[_PARTS] > 1]
    more: dict[int, list[Part]] = {}
    if split:
        found = connection.exec_driver_sql(
            f"SELECT position, first, data FROM {s}.oplog_part "
            "WHERE position = ANY (%s::bigint[]) ORDER BY position, number",
            (split,),
        )
        for position, first, data in found:
            more.setdefault(position, []).append(Part(first, bytes(data)))
    return [make_stored(row, more) for row in rows]
