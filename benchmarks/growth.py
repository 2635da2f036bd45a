"""What a longer log costs: appending, asking what is new, a row's history, a pass of publishing.

Two logs on one server, one with a hundred times as many records, have turns side by side. The rows
that are read and changed were written first, through a session: their records are the oldest. All
records behind them were made by SQL, and are published.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy.orm import Session

from benchmarks.clients import Seat
from benchmarks.contenders import Log
from benchmarks.database import empty_database, say
from benchmarks.filling import fill_records
from benchmarks.targets import GROWTH
from benchmarks.turns import find_quartiles
from benchmarks.workloads import ONE, Transfer
from benchmarks.writing import Settings
from oplog import open_archive
from oplog.store.cursor import Cursor
from oplog.store.feed import Feed

TIMES = 100
"""How many times as many records the long log has."""
OLD_ROWS = 200
CHANGES = 3
"""Changes of each old row."""
LACKING = 10
"""Records that a consumer lacks."""

Row = dict[str, Any]


class GrownLog:
    """A log with so many records, an archive that has them, and two consumers."""

    def __init__(self, url: str, records: int, *, archive: Path) -> None:
        self._side = Log(url)
        self._side.create()
        self._side.attach()
        self._seat = Seat(self._side)
        self._engine = self._side.engine
        self._number = 0
        self._seat.prepare_history(OLD_ROWS)
        with self._engine.connect() as connection:
            written = connection.exec_driver_sql(
                "SELECT count(*) FROM oplog.oplog_record"
            ).scalar_one()
        fill_records(self._engine, records - written)
        self._exporter = self._side.log.make_exporter(open_archive(archive.as_uri()))
        self._exporter.publish_all(self._engine)
        self._level, self._behind = (
            self._side.log.subscribe(self._engine, name=name) for name in ("level", "behind")
        )

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def place_consumers(self) -> None:
        """Write what one of the consumers lacks, and the other has seen."""
        self._place_consumer("behind")
        self._seat.repeat((ONE.name, LACKING))
        self._place_consumer("level")

    def _place_consumer(self, name: str) -> None:
        """Save a cursor that has seen everything: reading so much would take long."""
        feed = Feed("oplog")
        with self._engine.begin() as connection:
            server, timeline = feed.read_origin(connection)
            cursor = Cursor(server, timeline, feed.read_snapshot(connection))
            feed.write_checkpoint(
                connection, name, before=None, cursor=cursor.to_json(), position=0
            )

    # -- what is measured -----------------------------------------------------------------

    def publish(self) -> None:
        """A pass with nothing new."""
        report = self._exporter.publish_page(self._engine)
        _expect(report.entries, 0)

    def ask_in_vain(self) -> None:
        """A page for the consumer that lacks nothing."""
        batch = self._level.read_batch()
        _expect(0 if batch is None else len(batch), 0)

    def ask(self) -> None:
        """A page for the other one."""
        batch = self._behind.read_batch()
        _expect(0 if batch is None else len(batch), LACKING)

    def read_history(self) -> None:
        """All changes of an old row."""
        with self._side.sessions() as session:
            _expect(self._side.read_history(session, self._choose()), CHANGES)

    def insert(self) -> None:
        """A transaction that creates a row."""
        self._seat.transact(ONE)

    def update(self) -> None:
        """A transaction that changes an old row."""
        self._side.run(self._change)

    def _change(self, session: Session) -> None:
        self._side.begin(session, self._number)
        row = session.get_one(Transfer, self._choose())
        row.status = f"turn {self._number}"

    def _choose(self) -> int:
        self._number += 1
        # A step that shares no factor with the number of rows: every row in turn.
        return self._number * 7919 % OLD_ROWS + 1


WORKS: Mapping[str, Callable[[GrownLog], None]] = {
    "a pass of publishing with nothing new": GrownLog.publish,
    "what is new, for a consumer that lacks nothing": GrownLog.ask_in_vain,
    f"what is new, for one that lacks {LACKING} records": GrownLog.ask,
    f"history of a row with {CHANGES} changes": GrownLog.read_history,
    "append: a transaction that inserts a row": GrownLog.insert,
    "append: one that updates an old row": GrownLog.update,
}
"""What each is called -> how it is done. Those that write come last."""


def compare_growth(server: str, records: int, settings: Settings) -> Iterator[Row]:
    """Seconds with many records, as ratios to those with a hundredth of them."""
    counts = (max(records // TIMES, OLD_ROWS), records)
    titles = [f"at {count:,}" for count in counts]
    say(
        f"\n{'ms, by records in the log':52}{titles[0]:>14}{titles[1]:>16}{'ratio':>8}"
        f"{'quartiles':>13}{'target':>14}"
    )
    with (
        empty_database(server) as one,
        empty_database(server) as other,
        TemporaryDirectory(prefix="bench-") as place,
    ):
        logs = tuple(
            GrownLog(url, count, archive=Path(place) / str(count))
            for url, count in zip((one, other), counts, strict=True)
        )
        for title, work in WORKS.items():
            if work is GrownLog.ask_in_vain:
                for log in logs:
                    log.place_consumers()
            row = {"work": title, "records": list(counts), **_compare(logs, work, settings)}
            _say_row(row)
            yield row
        for log in logs:
            log.close()


def _compare(
    logs: tuple[GrownLog, ...], work: Callable[[GrownLog], None], settings: Settings
) -> Row:
    for log in logs:
        _take_turn(log, work, settings.seconds)
    measured = []
    for number in range(settings.rounds):
        # Each goes first in turns, so that both see the same machine.
        order = logs if number % 2 == 0 else tuple(reversed(logs))
        spent = {id(log): _take_turn(log, work, settings.seconds) for log in order}
        measured.append([spent[id(log)] for log in logs])
    ratio = find_quartiles([long / short for short, long in measured])
    return {
        "milliseconds": [
            round(1e3 * statistics.median(column), 3) for column in zip(*measured, strict=True)
        ],
        "ratio": round(ratio.median, 3),
        "quartiles": [round(ratio.low, 3), round(ratio.high, 3)],
        **GROWTH.to_json(ratio.median),
    }


def _take_turn(log: GrownLog, work: Callable[[GrownLog], None], seconds: float) -> float:
    """Seconds for each time, once at least."""
    count = 0
    begun = time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds or not count:
        work(log)
        count += 1
    return elapsed / count


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} were found, {expected} are there")


def _say_row(row: Row) -> None:
    low, high = row["quartiles"]
    short, long = row["milliseconds"]
    say(
        f"{row['work']:52}{short:>14.3f}{long:>16.3f}{row['ratio']:>8.2f}{low:>8.2f}-{high:.2f}"
        f"{GROWTH.describe():>14}  {row['verdict']}"
    )
