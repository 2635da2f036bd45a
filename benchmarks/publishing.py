"""Cost of publishing: entries per second, bytes beside zstd, and a pass with nothing new.

"The same records" are all columns of `oplog_record` in order, each row followed by its rows of
`oplog_part`, as binary COPY gives them; zstd compresses them in one stream at level 3. The uploaded
bytes are those of all objects in the store afterwards.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
import zstandard
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from benchmarks.database import fresh_database
from benchmarks.filling import fill_records
from benchmarks.workloads import MIXED, ONE, Base, Transfer, Turn, make_log, make_row
from oplog import Keyring, Oplog, TypeCatalog, open_archive

UPLOAD_TARGET = 1.1
IDLE_TARGET = 1.5
PASSES = 40
SAME_RECORDS = (
    "COPY (SELECT r.*, (SELECT array_agg(p ORDER BY p.number) FROM oplog.oplog_part p "
    "WHERE p.position = r.position) FROM oplog.oplog_record r ORDER BY r.position) "
    "TO STDOUT (FORMAT binary)"
)


def compare_export(server: str, entries: int) -> Iterator[dict[str, Any]]:
    """Publishing to a directory, of a sealed and of a readable log."""
    logs: dict[str, Callable[[], Oplog]] = {
        "sealed": lambda: make_log(Keyring.generate()),
        "plaintext": lambda: Oplog(TypeCatalog.from_models(Base), plaintext=True),
    }
    for kind, make in logs.items():
        with (
            fresh_database(server) as url,
            TemporaryDirectory(prefix="bench-") as place,
        ):
            engine = sa.create_engine(url)
            log = make()
            _write_entries(engine, log, entries)
            yield {"log": kind, **_measure_export(engine, log, Path(place))}
            engine.dispose()


def _write_entries(engine: Engine, log: Oplog, entries: int) -> None:
    """Half of them alone in a transaction of one insert, half in transactions of sixteen."""
    sessions = sessionmaker(engine)
    log.attach(sessions)
    mixed_count = entries // 2 // MIXED.rows
    with sessions.begin() as session:
        rows = [make_row(Transfer, number) for number in range(mixed_count * 6)]
        session.add_all(rows)
        session.flush()
        known = deque(row.id for row in rows)
    for number in range(mixed_count):
        with sessions.begin() as session:
            log.annotate(session, actor=f"clerk {number % 50}", request=str(uuid4()))
            turn = Turn(number, known)
            MIXED.run(session, turn)
        turn.close()
    for number in range(entries // 2):
        with sessions.begin() as session:
            log.annotate(session, actor=f"clerk {number % 50}", request=str(uuid4()))
            ONE.run(session, Turn(number))
    log.detach(sessions)


def _measure_export(engine: Engine, log: Oplog, place: Path) -> dict[str, Any]:
    raw_bytes, zstd_bytes, zstd_seconds = _compress_records(engine)
    archive = open_archive((place / "archive").as_uri())
    begun = time.perf_counter()
    report = log.sync(engine, archive)
    seconds = time.perf_counter() - begun
    uploaded = sum(info.size for info in archive.store.list(""))
    return {
        "entries": report.entries,
        "entries_per_second": round(report.entries / seconds),
        "copy_and_zstd_entries_per_second": round(report.entries / zstd_seconds),
        "raw_bytes": raw_bytes,
        "zstd_bytes": zstd_bytes,
        "uploaded_bytes": uploaded,
        "uploaded_to_raw": round(uploaded / raw_bytes, 3),
        "uploaded_to_zstd": round(uploaded / zstd_bytes, 3),
        "target": UPLOAD_TARGET,
    }


def _compress_records(engine: Engine) -> tuple[int, int, float]:
    """Bytes of the records raw and compressed, and the seconds that took."""
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    raw_bytes = zstd_bytes = 0
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        begun = time.perf_counter()
        with raw.cursor() as cursor, cursor.copy(SAME_RECORDS) as copy:
            for chunk in copy:
                raw_bytes += len(chunk)
                zstd_bytes += len(compressor.compress(chunk))
        zstd_bytes += len(compressor.flush())
        return raw_bytes, zstd_bytes, time.perf_counter() - begun


def compare_idle(server: str, entries: int) -> dict[str, Any]:
    """A worker's pass with nothing new: a short log behind it, and a long one."""
    short = max(entries // 100, 1)
    with (
        fresh_database(server) as one,
        fresh_database(server) as other,
        TemporaryDirectory(prefix="bench-") as place,
    ):
        passes = [
            _prepare_idle(url, count, Path(place) / str(number))
            for number, (url, count) in enumerate(((one, short), (other, entries)))
        ]
        for run in passes:
            run()
        measured = []
        for turn in range(PASSES):
            # The two alternate, and go first in turns, so that both see the same machine.
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            seconds = {number: passes[number]() for number in order}
            measured.append((seconds[0], seconds[1]))
    shorts, longs = zip(*measured, strict=True)
    return {
        "entries": [short, entries],
        "milliseconds": [round(1e3 * statistics.median(column), 2) for column in (shorts, longs)],
        "ratio": round(statistics.median(b / a for a, b in measured), 3),
        "target": IDLE_TARGET,
    }


def _prepare_idle(url: str, entries: int, place: Path) -> Callable[[], float]:
    """Fill a log and publish it; return a function that times one more pass."""
    engine = sa.create_engine(url)
    log = make_log(Keyring.generate())
    fill_records(engine, entries)
    exporter = log.make_exporter(open_archive(place.as_uri()))
    published = exporter.publish_all(engine).entries
    if published != entries:
        raise RuntimeError(f"{published} of {entries} entries were published")

    def run() -> float:
        begun = time.perf_counter()
        report = exporter.publish_page(engine)
        seconds = time.perf_counter() - begun
        if report.entries:
            raise RuntimeError(f"{report.entries} entries were new")
        return seconds

    return run
