"""Positions of records in either direction, by the index of one condition, a page at a time.

Each statement can be answered by one index alone and ends after its limit, whatever else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from oplog.schema.append import state_token
from oplog.store.rows import Seen
from oplog.store.seen import bind_unseen

_LARGEST = (1 << 63) - 1
_COUNTED = 1000
"""What is more frequent than this is not counted any further."""


@dataclass(frozen=True, slots=True)
class Span:
    """Positions over `low` and up to `high`."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """A log's tables on one connection, and the direction: by falling positions or rising ones."""

    connection: Connection
    s: str
    newest_first: bool

    @property
    def way(self) -> str:
        """The direction, for ORDER BY."""
        return "DESC" if self.newest_first else "ASC"

    def fetch(self, statement: str, *values: object) -> Sequence[Any]:
        """The rows of a statement."""
        return self.connection.exec_driver_sql(statement, values).fetchall()


class IndexScan(Protocol):
    """Finds the records of one condition."""

    def count(self, span: Span) -> int:
        """How many there are; of many only that they are many."""
        ...

    def find(self, span: Span, size: int) -> list[int]:
        """At most `size` positions, in the direction; fewer only if there are no more."""
        ...


class AllRecords:
    """All records, or all that were not seen."""

    def __init__(self, log: Scanned, unseen: Seen | None) -> None:
        self._log = log
        self._unseen = unseen

    def count(self, span: Span) -> int:
        """More than any condition has."""
        return span.high - span.low + _COUNTED

    def find(self, span: Span, size: int) -> list[int]:
        """By the index of positions."""
        condition, values = ("true", []) if self._unseen is None else bind_unseen(self._unseen)
        rows = self._log.fetch(
            f"SELECT r.position FROM {self._log.s}.oplog_record r "
            f"WHERE r.position BETWEEN %s AND %s AND {condition} "
            f"ORDER BY r.position {self._log.way} LIMIT %s",
            *(span.low + 1, span.high, *values, size),
        )
        return [row[0] for row in rows]


class TokenScan:
    """Records with one pair of metadata, and perhaps some that have only its digest."""

    def __init__(self, log: Scanned, key: str, value: str) -> None:
        self._log = log
        self._pair = (key, value)
        self._from = (
            f"FROM {log.s}.oplog_token x WHERE x.token = {state_token('%s::text', '%s::text')} "
            "AND x.position BETWEEN %s AND %s"
        )

    def count(self, span: Span) -> int:
        """Of the digest."""
        rows = self._log.fetch(
            f"SELECT count(*) FROM (SELECT {self._from} LIMIT {_COUNTED}) c",
            *(*self._pair, span.low + 1, span.high),
        )
        return int(rows[0][0])

    def find(self, span: Span, size: int) -> list[int]:
        """By the index of tokens; a pair that a record has twice gives its position twice."""
        rows = self._log.fetch(
            f"SELECT x.position {self._from} ORDER BY x.position {self._log.way} LIMIT %s",
            *(*self._pair, span.low + 1, span.high, size),
        )
        return [row[0] for row in rows]


class TagScan:
    """Records with one of several values of a metadata key."""

    def __init__(self, log: Scanned, key: str, values: Iterable[str]) -> None:
        self._log = log
        self._key = key
        self._values = list(values)

    def count(self, span: Span) -> int:
        """Of the digests, of each as many as are counted."""
        rows = self._log.fetch(
            f"SELECT count(*) FROM {self._select(_COUNTED)} c",
            *(self._key, self._values, span.low + 1, span.high),
        )
        return int(rows[0][0])

    def find(self, span: Span, size: int) -> list[int]:
        """By the index of tokens, from each value as many; a position may come several times."""
        rows = self._log.fetch(
            f"SELECT c.position FROM {self._select(size)} c "
            f"ORDER BY c.position {self._log.way} LIMIT {size}",
            *(self._key, self._values, span.low + 1, span.high),
        )
        return [row[0] for row in rows]

    def _select(self, size: int) -> str:
        token = state_token("%s::text", "v.text")
        return (
            f"(SELECT x.position FROM (SELECT {token} AS token "
            "FROM pg_catalog.unnest(%s::text[]) AS v(text)) w CROSS JOIN LATERAL "
            f"(SELECT t.position FROM {self._log.s}.oplog_token t WHERE t.token = w.token "
            f"AND t.position BETWEEN %s AND %s ORDER BY t.position {self._log.way} "
            f"LIMIT {size}) x)"
        )


class AggregateScan:
    """Records that have an entry of one of these aggregates.

    An aggregate's versions rise with its positions, one by one, and their index is by version. So a
    page is a range of versions: with positions and a limit alone, the planner may sort all entries
    of an aggregate that it takes for a short one.
    """

    def __init__(self, log: Scanned, names: Iterable[str]) -> None:
        self._log = log
        self._names = sorted(names)
        self._heads: dict[str, int] = {}
        """Newest versions."""
        self._next: dict[str, int] | None = None
        """By aggregate, the version that a page begins with."""

    def count(self, span: Span) -> int:  # noqa: ARG002 - the others count within it
        """Of all versions, whatever their positions."""
        return sum(self._read_heads().values())

    def find(self, span: Span, size: int) -> list[int]:
        """By the index of entries; a record with several of them gives its position as often."""
        if self._next is None:
            self._next = self._find_edges(span)
        back = self._log.newest_first
        reached = [self._next[name] for name in self._names]
        ends = [version - size + 1 if back else version + size - 1 for version in reached]
        lows, highs = (ends, reached) if back else (reached, ends)
        rows = self._log.fetch(
            "SELECT x.position, a.name, x.version FROM ROWS FROM "
            "(pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::bigint[]), "
            "pg_catalog.unnest(%s::bigint[])) AS a(name, low, high) "
            # With a limit of its own it is not joined in another way than by the index.
            f"CROSS JOIN LATERAL (SELECT e.position, e.version FROM {self._log.s}.oplog_entry e "
            "WHERE e.aggregate_name = a.name AND e.version BETWEEN a.low AND a.high "
            "AND e.position BETWEEN %s AND %s LIMIT %s) x "
            f"ORDER BY x.position {self._log.way} LIMIT %s",
            *(self._names, lows, highs, max(span.low + 1, 1), span.high, size, size),
        )
        for _, name, version in rows:
            self._next[name] = version - 1 if back else version + 1
        return [row[0] for row in rows]

    def _read_heads(self) -> dict[str, int]:
        if not self._heads:
            rows = self._log.fetch(
                "SELECT a.name, coalesce(t.version, (SELECT e.version "
                f"FROM {self._log.s}.oplog_entry e WHERE e.aggregate_name = a.name "
                "ORDER BY e.version DESC LIMIT 1), 0) "
                "FROM pg_catalog.unnest(%s::text[]) AS a(name) "
                f"LEFT JOIN {self._log.s}.oplog_ticket t ON t.aggregate_name = a.name",
                self._names,
            )
            self._heads = {name: int(version) for name, version in rows}
        return self._heads

    def _find_edges(self, span: Span) -> dict[str, int]:
        """The first versions within the span."""
        heads = self._read_heads()
        if self._log.newest_first and span.high >= _LARGEST:
            return dict(heads)
        edge = span.high if self._log.newest_first else span.low
        known = self._read_versions(edge)
        found = {}
        for name, head in heads.items():
            low, high = known.get(name, (0, head))
            # The last version up to the edge; what was pruned is before it.
            last = self._search(name, edge, low=low, high=min(high, head))
            found[name] = last if self._log.newest_first else last + 1
        return found

    def _read_versions(self, edge: int) -> dict[str, tuple[int, int]]:
        """Between which versions the last one is, for aggregates of the record at the edge.

        A page that ended with a record begins at its position, or beside it.
        """
        rows = self._log.fetch(
            "SELECT a.name, CASE WHEN r.versions IS NULL THEN 1 ELSE "
            'r.versions[pg_catalog.array_position(r.aggregates, a.name COLLATE "C")] END '
            f"FROM {self._log.s}.oplog_record r, pg_catalog.unnest(%s::text[]) AS a(name) "
            "WHERE r.position IN (%s, %s) AND a.name = ANY (r.aggregates)",
            *(self._names, edge, edge + 1),
        )
        return {name: (version - 1, version) for name, version in rows}

    def _search(self, name: str, edge: int, *, low: int, high: int) -> int:
        """The highest version from `low` to `high` whose position is not over the edge."""
        while low < high:
            middle = (low + high + 1) // 2
            rows = self._log.fetch(
                f"SELECT e.position FROM {self._log.s}.oplog_entry e "
                "WHERE e.aggregate_name = %s AND e.version = %s",
                *(name, middle),
            )
            if rows and rows[0][0] > edge:
                high = middle - 1
            else:
                low = middle
        return low


def choose_scan(scans: Sequence[IndexScan], span: Span) -> IndexScan:
    """The one with the fewest records; with one alone, nothing is counted."""
    if len(scans) == 1:
        return scans[0]
    counted = [(scan.count(span), number) for number, scan in enumerate(scans)]
    return scans[min(counted)[1]]
