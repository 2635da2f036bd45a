"""Pages of records in either direction, which cost what they give, however long the log is.

Positions are found by the index of what the filter asks for, a page at a time, and records by their
positions. In one statement, with the filter and a limit, the planner may walk the whole log for the
entries of one aggregate, or sort all entries of a common actor for a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import quote_for_driver
from oplog.postgres.standby import ALL_VISIBLE, iterate_positions
from oplog.store.entry_filter import bind_contents, bind_filter
from oplog.store.index_scan import (
    AggregateScan,
    AllRecords,
    IndexScan,
    Scanned,
    Span,
    TagScan,
    TokenScan,
    choose_scan,
)
from oplog.store.records import (
    PAGE_BYTES,
    PAGE_ENTRIES,
    complete_records,
    read_records,
    sum_before,
)
from oplog.store.rows import (
    RECORD_COLUMNS,
    EntryFilter,
    StoredRecord,
    list_aggregates,
    measure_record,
)
from oplog.store.seen import VISIBLE

_LARGEST = (1 << 63) - 1


class RecordPages:
    """The records of a log that fit a filter, as one connection and one snapshot have them."""

    def __init__(
        self,
        connection: Connection,
        filter: EntryFilter,
        *,
        schema: str,
        snapshot: str,
        newest_first: bool,
    ) -> None:
        self._log = Scanned(connection, quote_for_driver(schema), newest_first)
        self._filter = filter
        self._snapshot = snapshot
        self._span = Span(
            max(filter.after or 0, 0), _LARGEST if filter.through is None else filter.through
        )

    def iterate(self, expected: int) -> Iterator[list[StoredRecord]]:
        """Pages, none empty; the first has about `expected` records, later ones more and more."""
        size = min(max(expected, 1), PAGE_ENTRIES)
        if self._snapshot == ALL_VISIBLE:
            yield from self._iterate_on_standby(size)
            return
        span = self._span
        scan = choose_scan(self._list_scans(), span)
        while span.low < span.high:
            positions = scan.find(span, size)
            if not positions:
                return
            page, reached = self._read(positions)
            newest_first = self._log.newest_first
            span = Span(span.low, reached - 1) if newest_first else Span(reached, span.high)
            if page:
                yield page
            if len(positions) < size and reached == positions[-1]:
                return
            size = min(size * 2, PAGE_ENTRIES)

    def _list_scans(self) -> list[IndexScan]:
        """What can find the records, each by one of the filter's conditions."""
        names = list_aggregates(self._filter)
        scans: list[IndexScan] = []
        if names is not None:
            scans.append(AggregateScan(self._log, names))
        scans += [TokenScan(self._log, key, value) for key, value in self._filter.metadata]
        if self._filter.tagged is not None:
            scans.append(TagScan(self._log, *self._filter.tagged))
        return scans or [AllRecords(self._log, self._filter.unseen)]

    def _read(self, positions: Sequence[int]) -> tuple[list[StoredRecord], int]:
        """Those of the records that fit, and the last position that was looked at."""
        s, way = self._log.s, self._log.way
        contents, values = bind_contents(self._filter)
        rows = self._log.fetch(
            f"SELECT p.* FROM (SELECT {RECORD_COLUMNS}, {sum_before(s)}, "
            f"count(*) OVER () AS found FROM {s}.oplog_record r "
            f"WHERE r.position = ANY (%s::bigint[]) AND {VISIBLE} AND {contents} "
            f"WINDOW w AS (ORDER BY r.position {way})) p "
            f"WHERE p.bytes_before < {PAGE_BYTES} AND p.entries_before < {PAGE_ENTRIES} "
            f"ORDER BY p.position {way}",
            *(list(positions), self._snapshot, *values),
        )
        page = complete_records(self._log.connection, s, [row[:-3] for row in rows])
        cut = bool(rows) and len(rows) < rows[0][-1]
        return page, page[-1].position if cut else positions[-1]

    def _iterate_on_standby(self, size: int) -> Iterator[list[StoredRecord]]:
        s = self._log.s
        where, values = bind_filter(s, self._filter)
        pages = iterate_positions(
            self._log.connection,
            f"SELECT r.position, {measure_record(s)} FROM {s}.oplog_record r "
            f"WHERE r.position > %s AND {where} ORDER BY r.position {self._log.way}",
            (self._span.low, *values),
            most=size,
            most_bytes=PAGE_BYTES,
            fetched=size,
        )
        for positions in pages:
            # Records never change: a later statement shows the same ones.
            found = read_records(self._log.connection, s, positions)
            yield found[::-1] if self._log.newest_first else found
