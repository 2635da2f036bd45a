"""The model's Postgres: transactions that commit in any order, and failovers that forget some.

Knows nothing of stores. The hard thing is what a failover keeps: a prefix of the write-ahead log,
thus of the order of commits, which is not the order of positions; the acknowledgement is in the
same log. What was forgotten is forgotten for good: its transaction ids and positions are drawn
again by others.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.model.values import Cursor, Row


class Record(NamedTuple):
    """`uid` stands for the record's hash: no two records ever share one."""

    uid: int
    position: int
    xid: int


class Image(NamedTuple):
    """What one REPEATABLE READ transaction sees."""

    row: Row
    records: tuple[Record, ...]
    xip: frozenset[int]
    timeline: int


class Server:
    """One Postgres. `incarnation` changes whenever its connections are cut."""

    def __init__(self, row: Row, positions: list[int]) -> None:
        self.timeline = 1
        self.incarnation = 0
        self.first_row = row
        self.row = row
        self.positions = positions
        """Of all records that ever were, by uid - 1."""
        self._log: list[Record | Row] = []
        self._open: dict[int, Record] = {}
        self._records: tuple[Record, ...] = ()
        self._next_xid = 3
        self._next_position = 1

    def begin(self) -> None:
        """A transaction with its position drawn, about to commit."""
        xid, self._next_xid = self._next_xid, self._next_xid + 1
        self.positions.append(self._next_position)
        self._open[xid] = Record(len(self.positions), self._next_position, xid)
        self._next_position += 1

    def finish(self, draw: float, *, commit: bool) -> None:
        if not self._open:
            return
        xid = list(self._open)[int(draw * len(self._open))]
        record = self._open.pop(xid)
        if commit:
            self._log.append(record)
            self._records += (record,)

    def write_row(self, row: Row) -> None:
        self.row = row
        self._log.append(row)

    def read(self) -> Image:
        return Image(self.row, self._records, frozenset(self._open), self.timeline)

    def list_uids(self) -> frozenset[int]:
        return frozenset(record.uid for record in self._records)

    def lose(self, count: int) -> None:
        """Forget the last commits, as a crash does that finds them not flushed."""
        self._log = self._log[: max(0, len(self._log) - count)]
        self._open = {}
        self.incarnation += 1
        rows = [written for written in self._log if isinstance(written, Row)]
        self._records = tuple(written for written in self._log if isinstance(written, Record))
        self.row = rows[-1] if rows else self.first_row
        self._next_xid = max((e.xid for e in self._records), default=2) + 1
        self._next_position = max((e.position for e in self._records), default=0) + 1

    def promote(self, *, timeline: int, lost: int) -> Server:
        """A standby that takes over without the last commits; this one lives on."""
        server = Server(self.first_row, self.positions)
        server._log = list(self._log)
        server.lose(lost)
        server.timeline = timeline
        return server


class Session:
    """A connection. What was learnt through it holds only while it lasts."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._incarnation = server.incarnation

    @property
    def lost(self) -> bool:
        return self._incarnation != self.server.incarnation

    def reconnect(self, server: Server) -> None:
        self.server = server
        self._incarnation = server.incarnation


def advance(cursor: Cursor, news: tuple[Record, ...], *, xip: frozenset[int]) -> Cursor:
    """The cursor after these records, clamped so that reissued transaction ids stay news."""
    if not news:
        return cursor
    xmax = max(cursor.xmax, *(record.xid + 1 for record in news))
    return Cursor(xmax, frozenset(xid for xid in xip if xid < xmax))
