"""Logging rows again, killed at any moment, goes on where it stopped: no row twice, none missed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, LoggedEntry, Oplog, TypeCatalog
from tests.concurrency.workload import Base, Customer, Invoice
from tests.fault.adopting_process import CHUNK_ROWS, POINTS
from tests.refilling import bind, list_refills, migrate, refill
from tests.support import assert_replays

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]
ROWS = 1000


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    return path


@pytest.fixture
def log(engine: Engine, keyring: Path) -> Oplog:
    """Rows in the log, and DDL that rewrote them since."""
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        connection.exec_driver_sql("INSERT INTO customer VALUES (1, 'first')")
        connection.exec_driver_sql(
            f"INSERT INTO invoice SELECT n, 1, n FROM generate_series(1, {ROWS}) n"
        )
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file(keyring))
    with engine.connect() as connection:
        log.adopt(connection)
    wider = "ALTER TABLE invoice ALTER amount TYPE bigint USING amount * 1000"
    assert migrate(engine, log, "invoice", wider).shape.change.rewritten
    return log


def start(url: URL, keyring: Path, point: str, number: int) -> subprocess.Popen[str]:
    shown = url.render_as_string(hide_password=False)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.fault.refilling_process"),
            *(shown, str(keyring), point, str(number)),
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )


def read_chunks(engine: Engine, log: Oplog) -> list[LoggedEntry]:
    """What was logged again, each row once and in order."""
    with engine.connect() as connection:
        entries = list_refills(list(log.read(connection)))
        assert log.store.list_broken_links(connection) == []
    keys = [operation.key["id"] for entry in entries for operation in entry.operations]
    assert keys == list(range(1, len(keys) + 1))
    return entries


def finish(engine: Engine, log: Oplog) -> None:
    with engine.begin() as connection:
        bound = bind(connection, log, "invoice")
    with engine.connect() as connection:
        assert refill(connection, log, bound).earlier_rows > 0
        assert refill(connection, log, bound).entries == 0
    entries = read_chunks(engine, log)
    assert sum(len(entry.operations) for entry in entries) == ROWS
    # The first writer finds no mark of the change, and logs the rows once more.
    sessions = sessionmaker(engine)
    started = Oplog(log.catalog, keyring=log.keyring)
    started.attach(sessions)
    with sessions.begin() as session:
        session.get_one(Invoice, 7).amount = -1
        session.delete(session.get_one(Invoice, 8))
        session.get_one(Customer, 1).name = "changed"
    assert_replays(started, engine)


def test_a_killed_run_goes_on(engine: Engine, database_url: URL, keyring: Path, log: Oplog) -> None:
    for point in POINTS:
        before = len(read_chunks(engine, log))
        with start(database_url, keyring, point, 3) as process:
            process.wait()
        assert process.returncode == -signal.SIGKILL, point
        # What was not committed is not there, and nothing of it.
        committed = 3 if point == "committed" else 2
        assert len(read_chunks(engine, log)) == before + committed, point
    finish(engine, log)


def test_a_run_killed_from_outside_goes_on(
    engine: Engine, database_url: URL, keyring: Path, log: Oplog
) -> None:
    for chunks in (1, 4):
        before = len(read_chunks(engine, log))
        with start(database_url, keyring, "any", 0) as process:
            assert process.stdout is not None
            for _ in range(chunks):
                assert int(process.stdout.readline()) % CHUNK_ROWS == 0
            process.kill()
        assert len(read_chunks(engine, log)) >= before + chunks
    finish(engine, log)
