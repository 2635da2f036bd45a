"""Reads live tables for a snapshot: rows as COPY prints them, in pieces of a few megabytes.

The text must give the same value when another database reads it later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sqlalchemy.engine import Connection

from oplog.archive.format.manifest import ColumnType
from oplog.errors import SchemaDriftError
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.table_place import fits
from oplog.postgres.work import Driver
from oplog.replay.effect_route import Key
from oplog.replay.live_target import find_live_targets
from oplog.replay.loader import print_column
from oplog.replay.table_plan import TablePlan, list_quoted, read_plans
from oplog.replay.type_target import TypeTarget
from oplog.store.heads import HEAD_COLUMNS, HEAD_KEY, HEAD_TABLES, select_heads, select_heads_of
from oplog.value import ValueCodec, codec_for

CHUNK_BYTES: Final = 4 * 1024 * 1024
"""Text of rows in one chunk. Smaller ones compress worse, larger ones take more memory."""
HEADS: Final = "oplog_head"
"""What a snapshot calls the heads of aggregates, as the name of a table."""
_INTERVAL = re.compile(r"interval\b")
_LEAST_INTERVAL = "'-2562047788:00:54.775808'", "'-9223372036854775808us'"
"""The lowest time of an interval as Postgres prints it and cannot read it, and as it can."""

# How many tables and columns a migration changed since this transaction's MVCC snapshot: catalog
# tables are read through that snapshot, catalog functions answer from the newest state. A partition
# that was added since counts unless $2.
_COUNT_MIGRATED = """
WITH RECURSIVE seen AS (
  SELECT $1::regclass::oid AS oid
  UNION SELECT i.inhrelid FROM seen JOIN pg_catalog.pg_inherits i ON i.inhparent = seen.oid),
now AS (
  SELECT $1::regclass::oid AS oid
  UNION SELECT relid::oid FROM pg_catalog.pg_partition_tree($1::regclass))
SELECT (SELECT count(*) FROM seen FULL JOIN now USING (oid) LEFT JOIN pg_catalog.pg_class c
    ON c.oid = seen.oid
  WHERE CASE WHEN seen.oid IS NULL THEN NOT $2::boolean ELSE now.oid IS NULL OR c.oid IS NULL
    OR nullif(c.relfilenode, 0::oid) IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid) END)
  + (SELECT count(*) FROM seen JOIN pg_catalog.pg_attribute a ON a.attrelid = seen.oid
  WHERE a.attnum > 0 AND NOT a.attisdropped
    AND pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') IS NULL)
"""


class SourceTable(NamedTuple):
    """A table that rows come from; with `only`, without those that inherit from it."""

    schema: str
    name: str
    only: bool = False

    @property
    def qualified(self) -> str:
        """The quoted name."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def relation(self) -> str:
        """What to select its rows from, and to lock."""
        return f"{'ONLY ' if self.only else ''}{self.qualified}"


@dataclass(frozen=True, slots=True)
class LiveData:
    """One table to take a snapshot of, or rows that a query makes of others.

    `key` has the primary key's columns in the log's order, `order` in that of their index.
    """

    schema: str
    table: str
    types: tuple[str, ...]
    revisions: tuple[int, ...]
    columns: tuple[ColumnType, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]
    relation: str
    """What the rows are selected from, in SQL."""
    sources: tuple[SourceTable, ...]
    codecs: Mapping[str, ValueCodec] = field(compare=False, repr=False)
    narrow: Callable[[str], str] | None = field(default=None, compare=False, repr=False)
    """Gives for a stage's name a relation that has all rows whose keys are in it.

    None if a condition on `relation` is as cheap.
    """
    growing: bool = False
    """Whether partitions may come meanwhile, for rows that this transaction does not see."""

    def lock_against_migrations(self, driver: Driver) -> None:
        """Lock the sources, and raise `SchemaDriftError` if a migration changed one before that.

        To this transaction's MVCC snapshot, a table that was rewritten after the snapshot was
        taken looks empty, and a replaced column has other values: both would go unnoticed.
        """
        locked = ", ".join(one.relation for one in self.sources)
        driver.execute(f"LOCK TABLE {locked} IN ACCESS SHARE MODE")
        for one in self.sources:
            found = driver.query(_COUNT_MIGRATED, (one.qualified, self.growing)).fetchone()
            if found is None or found[0]:
                raise SchemaDriftError(
                    f"table {one.schema}.{one.name} was changed by a migration while a snapshot "
                    "was being taken",
                    hint="take the snapshot again",
                )

    def stream_rows(self, driver: Driver, *, stage: str | None = None) -> Iterator[bytes]:
        """COPY text of the rows in key order; with `stage`, only of those whose keys are in it."""
        chosen = (
            "" if stage is None else f" WHERE EXISTS (SELECT FROM {stage} s WHERE {self._match})"
        )
        return driver.stream_out(
            f"COPY (SELECT {self._selected} FROM {self._select(stage)} t{chosen} "
            f"ORDER BY {list_quoted(self.order, prefix='t.')}) TO STDOUT",
            enough=CHUNK_BYTES,
        )

    def stream_missing(self, driver: Driver, stage: str) -> Iterator[bytes]:
        """COPY text of the keys in `stage` that no row has."""
        names = ", ".join(self._print("s", f"k{n}", name) for n, name in enumerate(self.key))
        ordered = ", ".join(f"s.k{n}" for n in range(len(self.key)))
        return driver.stream_out(
            f"COPY (SELECT {names} FROM (SELECT DISTINCT {ordered} FROM {stage} s) s "
            f"WHERE NOT EXISTS (SELECT FROM {self._select(stage)} t WHERE {self._match}) "
            f"ORDER BY {ordered}) TO STDOUT",
            enough=CHUNK_BYTES,
        )

    def count_rows(self, driver: Driver) -> int:
        """The number of rows."""
        found = driver.execute(f"SELECT count(*) FROM {self.relation} t").fetchone()
        return int(found[0]) if found else 0

    def _select(self, stage: str | None) -> str:
        return self.relation if stage is None or self.narrow is None else self.narrow(stage)

    @property
    def _match(self) -> str:
        return " AND ".join(f"t.{quote(name)} = s.k{n}" for n, name in enumerate(self.key))

    @property
    def _selected(self) -> str:
        return ", ".join(self._print("t", quote(name), name) for name, _ in self.columns)

    def _print(self, relation: str, column: str, name: str) -> str:
        if not _INTERVAL.match(dict(self.columns)[name]):
            return f"{relation}.{column}"
        old, new = _LEAST_INTERVAL
        return f"pg_catalog.replace({relation}.{column}::text, {old}, {new})"


class Stage:
    """Keys of one table's rows, in a temporary table that is created for the first key.

    So a table that was not changed is not locked.
    """

    def __init__(self, driver: Driver, live: LiveData, number: int) -> None:
        """`number` is unique among the stages of this transaction; the table's name contains it."""
        self.name = f"pg_temp.oplog_changed_{number}"
        self.count = 0
        """Number of keys added; some may be duplicates."""
        self._driver = driver
        self._codecs = [live.codecs[name] for name in live.key]
        names = ", ".join(f"t.{quote(name)} AS k{n}" for n, name in enumerate(live.key))
        self._definition = (
            f"CREATE TEMPORARY TABLE oplog_changed_{number} ON COMMIT DROP AS "
            f"SELECT {names} FROM {live.relation} t WITH NO DATA"
        )

    def add(self, keys: Iterable[Key]) -> None:
        """Add keys, in wire values."""
        whole = list(keys)
        if not whole:
            return
        if not self.count:
            self._driver.execute(self._definition)
        by_column = zip(*whole, strict=True)
        fields = [print_column(c, v) for c, v in zip(self._codecs, by_column, strict=True)]
        lines = "\n".join(map("\t".join, zip(*fields, strict=True))) + "\n"
        self._driver.copy(f"COPY {self.name} FROM STDIN", [lines])
        self.count += len(whole)

    def analyze(self) -> None:
        """Gather the planner's statistics, without which it may scan the whole live table."""
        if self.count:
            self._driver.execute(f"ANALYZE {self.name}")

    def drop(self) -> None:
        """Drop the temporary table."""
        if self.count:
            self._driver.execute(f"DROP TABLE {self.name}")


def describe_table(connection: Connection, plan: TablePlan) -> LiveData:
    """A logged table with its logged columns, and the revisions that it has the columns of."""
    live = plan.live
    source = SourceTable(live.schema, live.name, only=live.kind == "r")
    return LiveData(
        schema=live.schema,
        table=live.name,
        types=plan.types,
        revisions=tuple(target.shape.revision for target in plan.targets.values()),
        columns=tuple(ColumnType(name, plan.live_columns[name].pg_type) for name in plan.names),
        key=plan.key_names,
        order=_read_key_order(connection, live.oid),
        relation=source.relation,
        sources=(source,),
        codecs=plan.codecs,
    )


def describe_heads(schema: str) -> LiveData:
    """The newest record of each aggregate of the log in `schema`; no table has them."""
    s = quote(schema)
    columns = tuple(ColumnType(*column) for column in HEAD_COLUMNS)

    return LiveData(
        schema=schema,
        table=HEADS,
        types=(),
        revisions=(),
        columns=columns,
        key=(HEAD_KEY,),
        order=(HEAD_KEY,),
        relation=select_heads(s),
        sources=tuple(SourceTable(schema, name) for name in HEAD_TABLES),
        codecs={name: codec_for(pg_type) for name, pg_type in columns},
        narrow=lambda stage: select_heads_of(s, f"(SELECT DISTINCT k.k0 FROM {stage} k)"),
        growing=True,
    )


def plan_present(connection: Connection, types: Iterable[Shape], *, schema: str) -> list[TablePlan]:
    """Plans of the tables that exist; a dropped one has no rows. `schema` is that of the log.

    `SchemaDriftError` for one that is not what a stored revision says: which columns its rows have
    could not be told later.
    """
    revisions = group_shapes(types)
    found = find_live_targets(connection, revisions, {}, schema=schema, missing=True)
    placed = []
    for live, target in found.placed:
        shapes = revisions[target.shape.type_name]
        known = target
        if target.shape not in shapes:
            known = TypeTarget(shapes[-1], shapes)
            if target.shape.change.labels or not fits(known.shape, live, shapes):
                raise SchemaDriftError(
                    f"table {live.schema}.{live.name} was changed, and the log does not say so yet "
                    f"(type {known.shape.type_name!r} revision {known.shape.revision})",
                    hint="note the change, and take the snapshot again: oplog types sync",
                )
        placed.append((live, known))
    return read_plans(connection, placed)


def _read_key_order(connection: Connection, oid: int) -> tuple[str, ...]:
    rows = connection.exec_driver_sql(
        "SELECT a.attname::text FROM pg_catalog.pg_index i CROSS JOIN LATERAL "
        "pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(n, place) "
        "JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n "
        "WHERE i.indrelid = %s::bigint::oid AND i.indisprimary AND k.place <= i.indnkeyatts "
        "ORDER BY k.place",
        (oid,),
    )
    return tuple(rows.scalars())
