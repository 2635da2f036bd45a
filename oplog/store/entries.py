"""Writing and reading the log: schema, types, keys, entries, tickets, checkpoints.

Takes a SQLAlchemy connection and plain values, gives back plain values. Statements go
through `exec_driver_sql`: an ORM-level execute would re-enter the session's own events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    INT8,
    INT8_ARRAY,
    TEXT,
    TEXT_ARRAY,
    UUID_ARRAY,
    UUID_OID,
    Message,
    Parameter,
)
from oplog.postgres.driver import require_driver
from oplog.postgres.quoting import quote, quote_for_driver, quote_literal
from oplog.postgres.standby import ALL_VISIBLE, iterate_positions
from oplog.store.entry_filter import bind_filter
from oplog.store.home import Identity, require_defined, require_home
from oplog.store.links import list_broken_links
from oplog.store.name_check import compare_names
from oplog.store.revisions import insert_type, list_types
from oplog.store.rows import (
    ENTRY_COLUMNS,
    BrokenLink,
    EntryFilter,
    NewEntry,
    StoredEntry,
    make_stored,
    read_microseconds,
)
from oplog.store.version import parse_version, read_comment

PAGE_ENTRIES = 4000
"""Most entries read at once."""
_ONE = (TEXT, INT8, UUID_OID, BYTEA, BYTEA)
_MANY = (TEXT_ARRAY, INT8_ARRAY, UUID_ARRAY, BYTEA_ARRAY, BYTEA_ARRAY)
"""Types of the members of `NewEntry`, of one and of many."""
_PLACES = ", ".join(f"${number}" for number in range(1, 12))
_ANSWER_ONE = "SELECT ARRAY[o_version], ARRAY[o_hash]"
_ANSWER_MANY = "SELECT versions, hashes"
_ANSWER_NONE = "SELECT ARRAY[]::bigint[], ARRAY[]::bytea[]"
PAGE_BYTES = 8 * 1024 * 1024
"""Sealed bytes read at once, more only for a single larger entry."""


class Store:
    """The log's tables in one schema; `TablesLog` binds its reading half to a connection."""

    def __init__(self, schema: str, *, asynchronous_commit: bool = False) -> None:
        self.schema = schema
        self._asynchronous_commit = asynchronous_commit
        self._s = quote_for_driver(schema)
        # A message knows no percent signs.
        s = quote(schema)
        self._append = f"{_ANSWER_MANY} FROM {s}.oplog_append("
        self._append_one = f"{_ANSWER_ONE} FROM {s}.oplog_append_one("
        self._settle = f"{_ANSWER_NONE} FROM {s}.oplog_settle("

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

        Required where entries are chosen by which transactions are visible; writing does not.
        Gives the identity of this database, which may be a copy on the server that the log was
        written on.
        """
        require_driver(connection)
        return require_home(connection, self.schema)

    def read_log_id(self, connection: Connection) -> UUID:
        """The identity of this log, bound into every sealed entry."""
        found = connection.exec_driver_sql(f"SELECT log_id FROM {self._s}.oplog_log").scalars()
        ids: list[UUID] = list(found)
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

    def list_keys(self, connection: Connection) -> dict[str, bytes]:
        """Check values by key id."""
        rows = connection.exec_driver_sql(f"SELECT key_id, check_value FROM {self._s}.oplog_key")
        return {key_id: bytes(check) for key_id, check in rows}

    # -- writing --------------------------------------------------------------------------

    def bind_append(
        self,
        entries: Sequence[NewEntry],
        *,
        format: int,
        key_id: str,
        metadata: Sequence[tuple[str, str]],
        metadata_hash: bytes,
        idempotency_key: str | None = None,
        tally: int | None = None,
        named: Sequence[tuple[str, int]] = (),
    ) -> Message:
        """The message that redeems and appends; entries sorted by aggregate.

        It answers with versions and hashes, in the same order. `tally` is what the guards of
        the tables must have counted; None if there are none. Unless each of `named`, a quoted
        name of a table and its oid, means that table when the statement runs, it raises: the
        tally is then `OTHER_TABLE`.
        """
        one = len(entries) == 1
        columns = entries[0] if one else zip(*entries, strict=True)
        oids = _ONE if one else _MANY
        parameters = (
            *map(Parameter, oids, columns),
            Parameter(INT2, format),
            Parameter(TEXT, key_id),
            Parameter(BYTEA, metadata_hash),
            Parameter(TEXT_ARRAY, [key for key, _ in metadata] or None),
            Parameter(TEXT_ARRAY, [value for _, value in metadata] or None),
            Parameter(TEXT, idempotency_key),
        )
        function = self._append_one if one else self._append
        return _bind(
            f"{function}{_PLACES}, ",
            parameters,
            tally=tally,
            named=named,
            last=Parameter(BOOL, self._asynchronous_commit),
        )

    def bind_settle(self, tally: int, *, named: Sequence[tuple[str, int]] = ()) -> Message:
        """The message of a transaction whose changes come to nothing; it answers with nothing."""
        return _bind(self._settle, (), tally=tally, named=named)

    def read_tickets(self, connection: Connection, aggregates: Sequence[str]) -> dict[str, int]:
        """Versions by aggregate; one never written is left out."""
        rows = connection.exec_driver_sql(
            f"SELECT aggregate_name, version FROM {self._s}.oplog_ticket "
            "WHERE aggregate_name = ANY(%s::text[])",
            (list(aggregates),),
        )
        return {row[0]: row[1] for row in rows}

    # -- reading --------------------------------------------------------------------------

    def read_snapshot(self, connection: Connection) -> str:
        """The transaction's (or statement's) snapshot as text; on a standby `ALL_VISIBLE`."""
        found = connection.exec_driver_sql(
            "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN %s::text "
            "ELSE pg_catalog.pg_current_snapshot()::text END",
            (ALL_VISIBLE,),
        )
        return str(found.scalar())

    def read_page(
        self, connection: Connection, filter: EntryFilter, *, snapshot: str, after: int
    ) -> list[StoredEntry]:
        """Entries visible in `snapshot` with a position over `after`, in causal order.

        Bounded in entries and bytes; an empty page is the end.
        """
        where, values = bind_filter(self._s, filter)
        inner = (
            f"SELECT {ENTRY_COLUMNS}, sum(octet_length(e.data)) OVER (ORDER BY e.id) AS bytes "
            f"FROM {self._s}.oplog_entry e WHERE e.id > %s "
            f"AND pg_catalog.pg_visible_in_snapshot(e.transaction_id, %s::pg_snapshot) AND {where} "
            f"ORDER BY e.id LIMIT {PAGE_ENTRIES}"
        )
        return self._page(connection, inner, (max(after, filter.after or 0), snapshot, *values))

    def _page(
        self, connection: Connection, inner: str, values: tuple[Any, ...]
    ) -> list[StoredEntry]:
        rows = connection.exec_driver_sql(
            f"SELECT * FROM ({inner}) p WHERE p.bytes - octet_length(p.data) < {PAGE_BYTES} "
            "ORDER BY p.id",
            values,
        )
        return [make_stored(row[:-1]) for row in rows.fetchall()]

    def read_metadata(
        self, connection: Connection, positions: Iterable[int]
    ) -> dict[int, list[tuple[str, str]]]:
        """Metadata pairs in their order, by transaction position."""
        found: dict[int, list[tuple[str, str]]] = {}
        rows = connection.exec_driver_sql(
            f"SELECT transaction_position, key, value FROM {self._s}.oplog_metadata "
            "WHERE transaction_position = ANY(%s::bigint[]) ORDER BY transaction_position, ordinal",
            (sorted(set(positions)),),
        )
        for position, key, value in rows:
            found.setdefault(position, []).append((key, value))
        return found

    def find_position(self, connection: Connection, at: datetime, *, snapshot: str) -> int:
        """The highest position recorded at or before `at`; 0 when there is none."""
        found = connection.exec_driver_sql(
            f"SELECT max(id) FROM {self._s}.oplog_entry WHERE created_at <= %s "
            "AND pg_catalog.pg_visible_in_snapshot(transaction_id, %s::pg_snapshot)",
            (at, snapshot),
        ).scalar()
        return int(found or 0)

    # -- checking -------------------------------------------------------------------------

    def list_broken_links(self, connection: Connection, *, limit: int = 20) -> list[BrokenLink]:
        """Gaps and false links in the aggregates' chains, and tickets that disagree with them.

        Compares stored hashes only; that each matches its entry's bytes is checked when it
        is read. Of a pruned log an aggregate may begin at any version, and what is missing
        must be as many entries as were pruned; which ones, only the archive tells.
        """
        return list_broken_links(connection, self.schema, limit=limit)

    def read_status(self, connection: Connection) -> Mapping[str, Any]:
        """Counts and sizes for an operator: entries, aggregates, last position, bytes, age."""
        name = quote_literal(f"{self._s}.oplog_entry")
        row = connection.exec_driver_sql(
            f"""SELECT (SELECT count(*) FROM {self._s}.oplog_entry) AS entries,
  (SELECT count(*) FROM {self._s}.oplog_ticket WHERE version > 0) AS aggregates,
  (SELECT coalesce(max(id), 0) FROM {self._s}.oplog_entry) AS position,
  (SELECT (extract(epoch FROM max(created_at)) * 1000000)::bigint
   FROM {self._s}.oplog_entry) AS recorded_at,
  pg_catalog.pg_total_relation_size({name}::regclass) AS entry_bytes,
  (SELECT count(*) FROM {self._s}.oplog_type) AS type_revisions,
  (SELECT log_id FROM {self._s}.oplog_log) AS log_id"""
        )
        status = dict(row.mappings().one())
        recorded = status["recorded_at"]
        status["recorded_at"] = None if recorded is None else read_microseconds(recorded)
        return status

    def iterate(
        self, connection: Connection, filter: EntryFilter, *, snapshot: str
    ) -> Iterator[list[StoredEntry]]:
        """Pages of entries in causal order, from one snapshot."""
        if snapshot == ALL_VISIBLE:
            yield from self._iterate_on_standby(connection, filter)
            return
        after = filter.after or 0
        while page := self.read_page(connection, filter, snapshot=snapshot, after=after):
            yield page
            after = page[-1].position

    def _iterate_on_standby(
        self, connection: Connection, filter: EntryFilter
    ) -> Iterator[list[StoredEntry]]:
        where, values = bind_filter(self._s, filter)
        # With a sum the order cannot come from the index on ids, which a cursor is otherwise
        # planned to walk, all of it, for the entries of a few aggregates.
        narrow = filter.aggregate is not None or filter.aggregates
        order = "e.id + 0" if narrow else "e.id"
        pages = iterate_positions(
            connection,
            f"SELECT e.id, octet_length(e.data) FROM {self._s}.oplog_entry e "
            f"WHERE e.id > %s AND {where} ORDER BY {order}",
            (filter.after or 0, *values),
            most=PAGE_ENTRIES,
            most_bytes=PAGE_BYTES,
        )
        for positions in pages:
            # Entries never change: a later statement shows the same ones.
            rows = connection.exec_driver_sql(
                f"SELECT {ENTRY_COLUMNS} FROM {self._s}.oplog_entry e "
                "WHERE e.id = ANY(%s::bigint[]) ORDER BY e.id",
                (positions,),
            )
            yield [make_stored(row) for row in rows]


def _bind(
    call: str,
    parameters: tuple[Parameter, ...],
    *,
    tally: int | None,
    named: Sequence[tuple[str, int]],
    last: Parameter | None = None,
) -> Message:
    """A call, its tally behind the parameters, and the last one, if there is one, behind that."""
    counted, compared = compare_names(named, first=len(parameters) + 1)
    bound = (*parameters, *compared, Parameter(INT8, tally))
    if last is None:
        return Message(f"{call}{counted})", bound)
    return Message(f"{call}{counted}, ${len(bound) + 1})", (*bound, last))
