"""Compares live tables with the log on a standby, where no table can be made.

The log is folded in memory, and its rows travel as parameters of the comparing query. Where they
do not fit into memory, the tables are split into buckets by a hash of the key, which Python and
Postgres compute alike, and the log is read once for each bucket.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oplog.errors import ConfigurationError
from oplog.payload.gc_pause import pause_collector
from oplog.postgres import driver_errors
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.work import Driver
from oplog.reading.reader import RecordReader
from oplog.replay.effect_route import Key
from oplog.replay.fold import Fold, Row, TableFold, make_misfit
from oplog.replay.loader import refuse_rows
from oplog.replay.rebuild import Applied, Progress, add_record, find_last
from oplog.replay.table_comparison import Comparison, compare_table
from oplog.replay.table_plan import TablePlan
from oplog.replay.validity import FoldRules
from oplog.value import ValueCodec, Wire

BUCKET_BYTES = 32 * 1024 * 1024
"""Intended size of the live tables' rows in one bucket; in memory they take several times that."""
BUCKET_BATCHES = 4
"""Most rows of the log in one bucket, in batches of a replay."""
MOST_BUCKETS = 4096
"""The log is read once for each bucket, so more would take too long."""

_REPORTED = 1000
"""Transactions between two reports."""
_HASHED_TYPES = re.compile(r"smallint|integer|bigint|text|uuid|character varying(\(\d+\))?")
"""Types of columns by which rows are hashed: equal values have one text."""
_LENGTH = re.compile(r"^(character varying|character|bit varying|bit)\(\d+\)")
_WITHOUT_LENGTH = {"character": "pg_catalog.bpchar", "bit": "bit varying"}


class _TooManyRowsError(Exception):
    """A bucket has more rows of the log than may be held in memory."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One of `count` buckets; tables that cannot be split are in the first as a whole."""

    number: int
    count: int

    def make_condition(self, plan: TablePlan) -> str:
        """SQL that is true for live rows `t` in this bucket; empty if all are."""
        name = _find_hashed_column(plan)
        if self.count == 1:
            return ""
        if name is None:
            return "true" if self.number == 0 else "false"
        digest = f"pg_catalog.sha256(pg_catalog.convert_to(t.{quote(name)}::text, 'UTF8'))"
        return (
            f"(get_byte({digest}, 0) * 65536 + get_byte({digest}, 1) * 256 "
            f"+ get_byte({digest}, 2)) % {self.count} = {self.number}"
        )

    def make_test(self, plan: TablePlan) -> Callable[[Key], bool]:
        """The same condition as a function of a logged key."""
        name = _find_hashed_column(plan)
        number, count = self.number, self.count
        if count == 1 or name is None:
            return lambda _: number == 0
        place = plan.key_names.index(name)
        write = plan.codecs[name].to_text

        def contains(key: Key) -> bool:
            part = key[place]
            text = "" if part is None else write(part)
            digest = hashlib.sha256(text.encode()).digest()
            return int.from_bytes(digest[:3]) % count == number

        return contains


class _BucketFold(TableFold):
    """The fold of one bucket of a table, from the beginning of the log to its end."""

    def __init__(self, plan: TablePlan, bucket: _Bucket) -> None:
        super().__init__(plan)
        self.plan = plan
        self._contains = bucket.make_test(plan)

    def create(self, key: Key, row: Row) -> None:
        """Add a row if it is in the bucket."""
        if self._contains(key):
            super().create(key, row)

    def adopt(self, key: Key, row: Row) -> None:
        """Add or replace a row if it is in the bucket."""
        if self._contains(key):
            super().adopt(key, row)

    def update(
        self,
        key: Key,
        values: Mapping[str, Wire | None],
        position: int,
        *,
        lenient: bool = False,
    ) -> None:
        """Change columns of a row if it is in the bucket."""
        if self._contains(key):
            super().update(key, values, position, lenient=lenient)

    def delete(self, key: Key, position: int, *, lenient: bool = False) -> None:
        """Delete a row if it is in the bucket."""
        if self._contains(key):
            super().delete(key, position, lenient=lenient)

    def check_known(self) -> None:
        """Raise `ReplayError` if rows were changed that the log never created."""
        for key, row in self.patched.items():
            if key not in self.doubtful:
                raise make_misfit(
                    self.form, key, position=row[2], what="updates a row that is not there"
                )
        for key, position in self.gone.items():
            if key not in self.doubtful:
                raise make_misfit(
                    self.form, key, position=position, what="deletes a row that is not there"
                )

    def list_rows(self) -> list[Mapping[str, Wire | None]]:
        """The bucket's rows at the end of the log."""
        return [row[0] for rows in (self.created, self.adopted) for row in rows.values()]


class _Work:
    """Comparison of all tables, run once for each number of buckets that is tried."""

    def __init__(
        self,
        reader: RecordReader,
        plans: Sequence[TablePlan],
        *,
        driver: Driver,
        snapshot: str,
        rules: FoldRules,
        limit: int,
        most_rows: int,
        progress: Progress | None,
    ) -> None:
        self._reader = reader
        self._plans = plans
        self._snapshot = snapshot
        self._limit = limit
        self._most_rows = most_rows
        self._progress = progress
        self._driver = driver
        self._last = 0 if progress is None else find_last(reader, snapshot=snapshot)
        self._rules = rules
        self._collations = _read_collations(self._driver, plans)

    def estimate(self) -> int:
        """The number of buckets by the size of the live tables."""
        oids = [plan.live.oid for plan in self._plans]
        found = self._driver.query(
            "SELECT coalesce(sum(pg_catalog.pg_table_size(o::oid)), 0)::bigint "
            "FROM pg_catalog.unnest($1::bigint[]) o",
            (oids,),
        ).fetchone()
        return 1 + int(found[0] if found else 0) // BUCKET_BYTES

    def run(self, count: int) -> Comparison:
        """Compare in `count` buckets; `_TooManyRowsError` if one has more rows than allowed."""
        parts = [Comparison(Applied()) for _ in self._plans]
        applied = Applied()
        for number in range(count):
            bucket = _Bucket(number, count)
            folds = [_BucketFold(plan, bucket) for plan in self._plans]
            applied = self._fold(folds, bucket)
            for fold, part in zip(folds, parts, strict=True):
                self._compare(fold, bucket, part)
        whole = Comparison(applied)
        for part in parts:
            whole.differences += part.differences
            whole.count += part.count
            whole.rows += part.rows
        del whole.differences[self._limit :]
        return whole

    def _fold(self, folds: Sequence[_BucketFold], bucket: _Bucket) -> Applied:
        by_type = {name: fold for fold in folds for name in fold.plan.types}
        fold = Fold(by_type, rules=self._rules)
        applied = Applied()
        with pause_collector() as collect:
            for number, record in enumerate(self._reader.iterate_records(self._snapshot)):
                add_record(fold, record, applied)
                if len(fold) > self._most_rows:
                    raise _TooManyRowsError
                if number % _REPORTED == 0:
                    collect()
                    self._report(applied.position, bucket)
        self._report(applied.position, bucket)
        for one in folds:
            one.check_known()
        return applied

    def _report(self, position: int, bucket: _Bucket) -> None:
        if self._progress is not None:
            last = max(self._last, position)
            self._progress(position + bucket.number * last, bucket.count * last)

    def _compare(self, fold: _BucketFold, bucket: _Bucket, part: Comparison) -> None:
        plan = fold.plan
        rows = fold.list_rows()
        target, parameters = _make_target(plan, rows, self._collations)
        try:
            found, total = compare_table(
                self._driver,
                plan,
                target,
                limit=max(self._limit - len(part.differences), 0),
                parameters=parameters,
                condition=bucket.make_condition(plan),
            )
        except (driver_errors.IntegrityError, driver_errors.DataError) as cause:
            raise refuse_rows(plan, cause) from cause
        part.differences += found
        part.count += total
        part.rows += len(rows)


def compare_in_buckets(
    reader: RecordReader,
    plans: Sequence[TablePlan],
    *,
    driver: Driver,
    snapshot: str,
    rules: FoldRules,
    limit: int,
    batch_rows: int,
    progress: Progress | None,
) -> Comparison:
    """Compare all tables with the log, in as many buckets as memory requires.

    The log is read once for each. With more than one, differences are ordered by key within
    a bucket only. `ConfigurationError` if more than `MOST_BUCKETS` would be needed.
    """
    work = _Work(
        reader,
        plans,
        driver=driver,
        snapshot=snapshot,
        rules=rules,
        limit=limit,
        most_rows=BUCKET_BATCHES * batch_rows,
        progress=progress,
    )
    count = work.estimate()
    while count <= MOST_BUCKETS:
        try:
            return work.run(count)
        except _TooManyRowsError:
            # The log has more rows than the tables, or the rows are small.
            count *= 4
    raise ConfigurationError(
        "the tables are too large to be verified on a standby",
        hint="run verify on the primary, where the log is folded into temporary tables",
    )


# -- the log's rows as a query ----------------------------------------------------------------


def _make_target(
    plan: TablePlan,
    rows: Sequence[Mapping[str, Wire | None]],
    collations: Mapping[tuple[int, str], str],
) -> tuple[str, list[list[str | None]]]:
    """A query in parentheses for these rows, with computed columns, and its parameters."""

    def shape(name: str, value: str) -> str:
        """A value cast to the live column's type and collation, as the comparison needs it."""
        kind = _LENGTH.sub(_drop_length, plan.name_type(name))
        collation = collations.get((plan.live.oid, name))
        collated = f" COLLATE {collation}" if collation else ""
        return f"({value})::{kind}{collated} AS {quote(name)}"

    by_origin: dict[tuple[str, ...], list[Mapping[str, Wire | None]]] = {}
    for row in rows:
        by_origin.setdefault(tuple(n for n in plan.names if n in row), []).append(row)
    nothing = ", ".join(shape(name, "NULL") for name in plan.names)
    selects = [f"SELECT {nothing} WHERE false"]
    parameters: list[list[str | None]] = []
    for origin, same in by_origin.items():
        places = {name: f"u.c{number}" for number, name in enumerate(origin)}
        columns = ", ".join(
            shape(name, places.get(name) or plan.fills.get(name, "NULL")) for name in plan.names
        )
        arrays = ", ".join(
            f"pg_catalog.unnest(${len(parameters) + n + 1}::text[])" for n in range(len(origin))
        )
        names = ", ".join(f"c{number}" for number in range(len(origin)))
        selects.append(f"SELECT {columns} FROM ROWS FROM ({arrays}) u({names})")
        parameters += [_print_column(plan.codecs[name], name, same) for name in origin]
    computed = "".join(
        f", {shape(name, plan.formulas[name])}" for name in plan.compared if name not in plan.codecs
    )
    return f"(SELECT q.*{computed} FROM ({' UNION ALL '.join(selects)}) q)", parameters


def _drop_length(found: re.Match[str]) -> str:
    # A cast to the column's length would cut a longer value, and so hide a difference.
    return _WITHOUT_LENGTH.get(found[1], found[1])


def _print_column(
    codec: ValueCodec, name: str, rows: Sequence[Mapping[str, Wire | None]]
) -> list[str | None]:
    write = codec.to_text
    return [None if (value := row[name]) is None else write(value) for row in rows]


def _find_hashed_column(plan: TablePlan) -> str | None:
    """The first key column whose type is in `_HASHED_TYPES`, or None."""
    for name in plan.key_names:
        if _HASHED_TYPES.fullmatch(plan.live_columns[name].pg_type):
            return name
    return None


def _read_collations(driver: Driver, plans: Sequence[TablePlan]) -> Mapping[tuple[int, str], str]:
    """Names of the columns' collations, as SQL, by the table's oid and the column."""
    rows = driver.query(
        "SELECT a.attrelid::bigint, a.attname::text, pg_catalog.quote_ident(n.nspname) || '.' "
        "|| pg_catalog.quote_ident(c.collname) FROM pg_catalog.pg_attribute a "
        "JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace "
        "WHERE a.attrelid = ANY($1::bigint[]::oid[])",
        ([plan.live.oid for plan in plans],),
    )
    return {(oid, name): collation for oid, name, collation in rows}
