"""A stretch of the log between two moments, and what it made of a model's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from oplog.catalog import DeclaredType
from oplog.errors import ConfigurationError
from oplog.past.look_back import resolve_moment
from oplog.past.moment_plans import PastTypes, find_past_types
from oplog.past.one_snapshot import OneSnapshot, open_one_snapshot, pin_text
from oplog.past.past_rows import PastRows
from oplog.past.row_difference import (
    RowDifference,
    TableDifferences,
    compare_versions,
    describe_key,
    list_touched_keys,
    sort_keys,
)
from oplog.past.row_versions import list_versions
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import RecordReader
from oplog.reading.row_history import list_changes
from oplog.replay.rebuild import find_last
from oplog.replay.table_plan import TablePlan

EVERY: Any = object()
"""No key: all rows. None is not that, so that a key which is missing by mistake is refused."""


@dataclass(frozen=True)
class Stretch:
    """The records after the types' position, up to `through`, in one snapshot."""

    types: PastTypes
    rows: PastRows
    inside: OneSnapshot | None
    snapshot: str
    through: int

    @property
    def reader(self) -> RecordReader:
        """What opens its records."""
        return self.types.reader

    def compare(self, types: Sequence[DeclaredType], *, key: Any) -> Iterator[RowDifference]:
        """Rows of a model that differ, by key; of `EVERY` key, or of one."""
        if key is not EVERY:
            yield from self._compare_row(types, key)
            return
        plans = [self._plan(declared) for declared in types]
        if len(plans) == 1:
            table = TableDifferences(
                self.types, self.rows, plans[0], snapshot=self.snapshot, through=self.through
            )
            yield from table.iterate()
            return
        # A row of joined inheritance is one only where every table has its part of it.
        keys = {
            key: plan
            for plan in plans
            for key in list_touched_keys(
                self.types, plan, snapshot=self.snapshot, through=self.through
            )[0].first
        }
        for found in sort_keys(keys):
            yield from self._compare_row(types, tuple(describe_key(keys[found], found).values()))

    def _plan(self, declared: DeclaredType) -> TablePlan:
        name = self.types.match(declared)
        if self.inside is None:
            return self.types.plan(None, name, shape="now")
        with pin_text(self.inside.connection):
            return self.types.plan(self.inside.connection, name, shape="now")

    def _compare_row(self, types: Sequence[DeclaredType], key: Any) -> Iterator[RowDifference]:
        log = self.types.log
        inside = None if self.inside is None else self.inside.connection
        reader = log.open(inside, stepping=False)
        changes = list_changes(reader, types, key=key, steps=log.make_steps(reader))
        versions = list_versions(changes, reader, types, now=True)
        names = [column.name for column in types[0].table.primary_key]
        values = key if isinstance(key, tuple | list) else [key]
        shown = dict(key) if isinstance(key, dict) else dict(zip(names, values, strict=False))
        found = compare_versions(versions, shown, before=self.types.at, after=self.through)
        if found is not None:
            yield found


@contextmanager
def open_stretch(
    connection: Connection | None,
    log: LogOpener,
    *,
    before: int | datetime,
    after: int | datetime | None,
) -> Iterator[Stretch]:
    """The stretch between two moments; errors are those of `open_moment`."""
    if connection is None:
        yield _make(None, log, before=before, after=after)
        return
    with open_one_snapshot(connection, apart=True) as inside:
        yield _make(inside, log, before=before, after=after)


def _make(
    inside: OneSnapshot | None,
    log: LogOpener,
    *,
    before: int | datetime,
    after: int | datetime | None,
) -> Stretch:
    own = None if inside is None else inside.connection
    reader = log.open(own, whole=own is None)
    snapshot = reader.source.read_snapshot()
    at = resolve_moment(reader, log, before, snapshot=snapshot, connection=own)
    through = (
        find_last(reader, snapshot=snapshot)
        if after is None
        else resolve_moment(reader, log, after, snapshot=snapshot, connection=own)
    )
    if through < at:
        raise ConfigurationError(
            f"the later moment (position {through}) lies before the earlier one (position {at})",
            hint="exchange before= and after=",
        )
    types = find_past_types(reader, log, at=at, snapshot=snapshot)
    rows = PastRows(types, inside, snapshot=snapshot)
    rows.require_present()
    return Stretch(types, rows, inside, snapshot=snapshot, through=through)
