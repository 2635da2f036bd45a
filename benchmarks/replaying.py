"""Speed of a replay, beside COPY of the same rows."""

from __future__ import annotations

import io
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import sessionmaker

from benchmarks.workloads import WORKLOADS, Turn, make_log
from oplog import Keyring


def fill_log(url: str, *, rows_per_entry: int, rows: int, keyring: Keyring) -> None:
    """Rows written through an attached session, so many in each entry."""
    workload = next(w for w in WORKLOADS if w.rows == rows_per_entry)
    engine = sa.create_engine(url)
    sessions = sessionmaker(engine)
    make_log(keyring, one_aggregate=True).attach(sessions)
    for number in range(-(-rows // workload.rows)):
        with sessions.begin() as session:
            workload.run(session, Turn(number))
    engine.dispose()


def measure_replay(engine: Engine, keyring: Keyring) -> tuple[float, float]:
    """Rows per second of a replay, and of COPY loading the same rows into a like table."""
    log = make_log(keyring, one_aggregate=True)
    with engine.connect() as connection:
        begun = time.perf_counter()
        report = log.replay(connection, into="replayed")
        connection.commit()
        replayed = report.rows / (time.perf_counter() - begun)
    with engine.begin() as connection:
        copied = measure_copy(connection)
    return replayed, copied


def measure_copy(connection: Connection) -> float:
    """Rows per second of COPY into an empty table that then gets its primary key."""
    raw: Any = connection.connection.driver_connection
    buffer = io.BytesIO()
    with raw.cursor() as cursor, cursor.copy("COPY transfer TO STDOUT") as copy:
        for chunk in copy:
            buffer.write(chunk)
    connection.exec_driver_sql("CREATE TABLE copied (LIKE transfer)")
    rows = connection.execute(sa.text("SELECT count(*) FROM transfer")).scalar_one()
    begun = time.perf_counter()
    with raw.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
        copy.write(buffer.getvalue())
    connection.exec_driver_sql("ALTER TABLE copied ADD PRIMARY KEY (id)")
    elapsed = time.perf_counter() - begun
    connection.exec_driver_sql("DROP TABLE copied")
    return float(rows / elapsed)
