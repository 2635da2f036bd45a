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
from oplog.replay.row_query import make_row_query, read_collations
from oplog.replay.table_comparison import Comparison, compare_table
from oplog.replay.table_plan import TablePlan
from oplog.replay.validity import FoldRules
from oplog.value import Wire

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
        self._collations = read_collations(self._driver.connection, plans)

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
        target, parameters = make_row_query(
            plan, rows, collations=self._collations, mark=lambda number: f"${number + 1}"
        )
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


def _find_hashed_column(plan: TablePlan) -> str | None:
    """The first key column whose type is in `_HASHED_TYPES`, or None."""
    for name in plan.key_names:
        if _HASHED_TYPES.fullmatch(plan.live_columns[name].pg_type):
            return name
    return None
