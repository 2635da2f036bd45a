"""Speed of a restore from an archive, beside COPY; bytes uploaded by a second snapshot.

COPY loads the same rows, from memory, into a table without a key and then adds the key. A restore
also fills the log, checks both, and reads from files.
"""

from __future__ import annotations

import io
import random
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from benchmarks.database import fresh_database
from benchmarks.replaying import fill_log
from benchmarks.workloads import Base, make_log
from oplog import Archive, Keyring, Oplog, TypeCatalog, open_archive

RESTORE_TARGET = 0.3
LAYER_TARGET = 0.03
PAIRS = 3
CHANGED_SHARE = 0.01
CHANGED_AT_ONCE = 100


class ByNumber(DeclarativeBase):
    """A table with integer keys."""


class ByUuid(DeclarativeBase):
    """The same table with random keys."""


class Payment(ByNumber):
    """A row of ordinary width."""

    __tablename__ = "payment"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    memo: Mapped[str]
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))
    account: Mapped[int]


class RandomPayment(ByUuid):
    """The same row under a random key."""

    __tablename__ = "payment"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    memo: Mapped[str]
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))
    account: Mapped[int]


@dataclass(frozen=True)
class Keys:
    """A way of making keys: its model, and a key's expression."""

    title: str
    model: type[Payment | RandomPayment]
    expression: str


KEYS = (
    Keys("integer keys", Payment, "n"),
    Keys("UUID keys", RandomPayment, "md5('key ' || n)::uuid"),
)


def compare_restoring(server: str, rows: int) -> Iterator[dict[str, Any]]:
    """Restores beside COPY, then snapshots: of adopted rows, and of rows that were written."""
    for keys in KEYS:
        with TemporaryDirectory(prefix="bench-") as place:
            yield from _compare_adopted(server, keys, rows=rows, place=Path(place))
        with TemporaryDirectory(prefix="bench-") as place:
            yield _compare_ticketed(server, keys, rows=rows, place=Path(place))
    for per_entry, count in ((1000, rows // 10), (1, rows // 100)):
        with TemporaryDirectory(prefix="bench-") as place:
            yield from _compare_written(server, per_entry, rows=count, place=Path(place))


def _compare_adopted(
    server: str, keys: Keys, *, rows: int, place: Path
) -> Iterator[dict[str, Any]]:
    metadata = keys.model.metadata
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
    archive, whole = (open_archive((place / name).as_uri()) for name in ("log", "all"))
    with fresh_database(server, metadata) as url:
        engine = sa.create_engine(url)
        _fill_table(engine, keys, rows)
        with engine.connect() as connection:
            log.adopt(connection)
        layer = _measure_layer(engine, log, keys, rows=rows, archive=whole)
        yield {"what": f"second snapshot, {keys.title}: 1 % changed, for the first time", **layer}
        log.sync(engine, archive)
        for title, source, target in (
            ("snapshot and log", whole, RESTORE_TARGET),
            ("log alone, adopted", archive, None),
        ):
            measured = _compare_restore(server, engine, log, archive=source, metadata=metadata)
            yield {"what": f"restore, {keys.title}: {title}", **measured, "target": target}
        engine.dispose()


def _compare_ticketed(server: str, keys: Keys, *, rows: int, place: Path) -> dict[str, Any]:
    """Measure rows that each are an aggregate: a snapshot has a head for each row."""
    metadata = keys.model.metadata
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
    archive = open_archive((place / "all").as_uri())
    with fresh_database(server, metadata) as url:
        engine = sa.create_engine(url)
        _fill_table(engine, keys, rows)
        with engine.connect() as connection:
            log.adopt(connection)
        with engine.begin() as connection:
            # Only heads, as of pruned records: a snapshot needs no more.
            connection.exec_driver_sql(
                "INSERT INTO oplog.oplog_entry (aggregate_name, version, position) "
                "SELECT 'payment/' || id, 1, 0 FROM payment"
            )
            connection.exec_driver_sql(
                "INSERT INTO oplog.oplog_ticket (aggregate_name, version, head_version, head_hash) "
                "SELECT 'payment/' || id, 1, 1, sha256(('r' || id)::bytea) FROM payment"
            )
        layer = _measure_layer(engine, log, keys, rows=rows, archive=archive)
        engine.dispose()
    return {"what": f"second snapshot, {keys.title}: 1 % changed, as all had been before", **layer}


def _measure_layer(
    engine: Engine, log: Oplog, keys: Keys, *, rows: int, archive: Archive
) -> dict[str, Any]:
    """Bytes of a first snapshot, and of a second one after some rows were changed."""
    full = log.snapshot(engine, archive)
    changed = _change_rows(engine, log, keys, rows=rows)
    layer = log.snapshot(engine, archive)
    return {
        "rows": rows,
        "changed": changed,
        "full_bytes": full.bytes,
        "bytes": layer.bytes,
        "ratio": round(layer.bytes / full.bytes, 4),
        "target": LAYER_TARGET,
    }


def _compare_written(
    server: str, per_entry: int, *, rows: int, place: Path
) -> Iterator[dict[str, Any]]:
    keyring = Keyring.generate()
    alone, whole = (open_archive((place / name).as_uri()) for name in ("log", "all"))
    with fresh_database(server) as url:
        fill_log(url, rows_per_entry=per_entry, rows=rows, keyring=keyring)
        engine = sa.create_engine(url)
        log = make_log(keyring, one_aggregate=True)
        log.sync(engine, alone)
        log.snapshot(engine, whole)
        for title, source in (("snapshot and log", whole), ("log alone", alone)):
            yield {
                "what": f"restore, rows per entry {per_entry}: {title}",
                **_compare_restore(server, engine, log, archive=source, metadata=Base.metadata),
                "target": None,
            }
        engine.dispose()


def _compare_restore(
    server: str, engine: Engine, log: Oplog, *, archive: Archive, metadata: sa.MetaData
) -> dict[str, Any]:
    """Medians over pairs of a COPY and a restore, one right after the other."""
    pairs = []
    for _ in range(PAIRS):
        copied = _measure_copy(engine, metadata.sorted_tables[-1].name)
        with fresh_database(server, metadata) as url:
            target = sa.create_engine(url, poolclass=sa.NullPool)
            with target.connect() as connection:
                begun = time.perf_counter()
                # Opened anew, as another process would: nothing of the archive is cached.
                report = log.restore(open_archive(archive.url), connection)
                pairs.append((copied, time.perf_counter() - begun))
    copies, restores = zip(*pairs, strict=True)
    return {
        "rows": report.rows,
        "entries": report.entries,
        "restore_rows_per_second": round(report.rows / statistics.median(restores)),
        "copy_rows_per_second": round(report.rows / statistics.median(copies)),
        "ratio": round(statistics.median(copy / restore for copy, restore in pairs), 3),
    }


def _measure_copy(engine: Engine, table: str) -> float:
    """Seconds of COPY into a new table that then gets its primary key, COMMIT included."""
    buffer = io.BytesIO()
    with engine.begin() as connection:
        raw: Any = connection.connection.driver_connection
        with raw.cursor() as cursor, cursor.copy(f"COPY {table} TO STDOUT") as copy:
            for chunk in copy:
                buffer.write(chunk)
    begun = time.perf_counter()
    with engine.begin() as connection:
        raw = connection.connection.driver_connection
        connection.exec_driver_sql(f"CREATE TABLE copied (LIKE {table})")
        with raw.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
            copy.write(buffer.getvalue())
        connection.exec_driver_sql("ALTER TABLE copied ADD PRIMARY KEY (id)")
    seconds = time.perf_counter() - begun
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE copied")
    return seconds


def _fill_table(engine: Engine, keys: Keys, rows: int) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO payment (id, memo, amount, account) SELECT {keys.expression}, "  # noqa: S608 - an expression of ours
            "'payment number ' || n || ' ' || md5(n::text), mod(n::bigint * 7919, 1000000) / "
            "100.0, mod(n, 1000) FROM generate_series(1, %s::integer) n",
            (rows,),
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE payment")


def _change_rows(engine: Engine, log: Oplog, keys: Keys, *, rows: int) -> int:
    """Change rows here and there through the ORM, some in each transaction; how many."""
    model = keys.model
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions() as session:
        known = sorted(session.scalars(sa.select(model.id)), key=str)
    chosen = random.Random(1).sample(known, max(int(rows * CHANGED_SHARE), 1))
    for first in range(0, len(chosen), CHANGED_AT_ONCE):
        wanted = chosen[first : first + CHANGED_AT_ONCE]
        with sessions.begin() as session:
            found: Iterable[Any] = session.scalars(sa.select(model).where(model.id.in_(wanted)))
            for row in found:
                row.memo = f"changed {row.memo}"
    log.detach(sessions)
    return len(chosen)
