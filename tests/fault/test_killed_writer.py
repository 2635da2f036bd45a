"""Writers and servers that die: together or not at all, and everybody else goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, Receipt, TypeCatalog
from oplog.errors import CommitError, OplogError
from oplog.testing import EmbeddedServer
from tests.concurrency.workload import Base, Customer, Invoice
from tests.fault.crashing_writer import NOTHING_STORED, STORED
from tests.support import install_log

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    return path


def make_sessions(engine: Engine, keyring: Keyring) -> tuple[Oplog, sessionmaker[Session]]:
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
    log, sessions = Oplog(TypeCatalog.from_models(Base), keyring=keyring), sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.add(Customer(id=1, name="first"))
    return log, sessions


@pytest.fixture
def crasher(database_url: URL, keyring: Path) -> Iterator[subprocess.Popen[str]]:
    url = database_url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fault.crashing_writer", url, str(keyring)],
        cwd=ROOT,
        text=True,
        bufsize=1,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def crash_at(crasher: subprocess.Popen[str], point: str) -> None:
    assert crasher.stdin is not None
    assert crasher.stdout is not None
    crasher.stdin.write(f"{point}\n")
    assert crasher.stdout.readline() == f"{int(signal.SIGKILL)}\n", f"{point} was not reached"


def read_state(engine: Engine, log: Oplog) -> tuple[str, int, int]:
    """The customer's name, how many invoices there are, how many entries."""
    with engine.connect() as connection:
        name = connection.execute(sa.select(Customer.name)).scalar_one()
        invoices = connection.execute(sa.select(sa.func.count()).select_from(Invoice)).scalar_one()
        return name, invoices, len(list(log.read(connection)))


def check(engine: Engine, log: Oplog) -> None:
    """The log is whole, and the tables are what it says."""
    with engine.connect() as connection:
        entries = list(log.read(connection))
        for aggregate in {entry.aggregate for entry in entries}:
            found = [entry.version for entry in entries if entry.aggregate == aggregate]
            assert found == list(range(1, len(found) + 1)), aggregate
        assert log.store.list_broken_links(connection) == []
        report = log.verify(connection)
        assert report.ok, report.differences


def test_a_killed_writer_leaves_all_or_nothing(
    engine: Engine, keyring: Path, crasher: subprocess.Popen[str]
) -> None:
    log, sessions = make_sessions(engine, Keyring.from_file(keyring))
    # The dead writer's session must end by itself: nobody waits longer than this for its locks.
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"ALTER DATABASE \"{engine.url.database}\" SET lock_timeout = '20s'"
        )
    engine.dispose()
    for point in (*NOTHING_STORED, *STORED):
        name, invoices, entries = read_state(engine, log)
        crash_at(crasher, point)
        with sessions.begin() as session:  # the next writer goes on, of the same aggregate too
            found = session.get_one(Customer, 1, with_for_update=True)
            after = found.name
            found.name = f"after {point}"
        if point in NOTHING_STORED:
            assert (after, *read_state(engine, log)[1:]) == (name, invoices, entries + 1), point
        else:
            # Customer and two invoices, an aggregate each, and the next writer's entry.
            expected = ("changed", invoices + 2, entries + 4)
            assert (after, *read_state(engine, log)[1:]) == expected, point
        check(engine, log)


class Load:
    """A few writers that note every receipt they were given, until the server dies."""

    def __init__(self, log: Oplog, engine: Engine) -> None:
        self.log = log
        self.engine = engine
        self.receipts: list[Receipt] = []
        self.enough = threading.Event()
        self.failures: list[BaseException] = []
        self._guard = threading.Lock()

    def run(self, count: int) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._write, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _write(self, number: int) -> None:
        sessions = sessionmaker(self.engine)
        self.log.attach(sessions)
        held: list[Session] = []

        def work(session: Session) -> None:
            held[:] = [session]
            session.get_one(Customer, 1 + number % 2).name = f"by {number}"
            session.add(Invoice(customer_id=1, amount=number))
            session.flush()
            with suppress(ZeroDivisionError), session.begin_nested():
                session.add(Invoice(customer_id=1, amount=-1))
                session.flush()
                raise ZeroDivisionError

        try:
            while True:
                self.log.run(sessions, work, retries=1000)
                with self._guard:
                    self.receipts += self.log.receipts(held[0])
                if len(self.receipts) >= 60:
                    self.enough.set()
        except (DBAPIError, OplogError) as failure:
            self.failures.append(failure)
        finally:
            self.enough.set()


def test_a_killed_server_keeps_every_acknowledged_entry() -> None:
    with EmbeddedServer(fsync=True) as server:
        engine = create_engine(server.url)
        with engine.begin() as connection:
            install_log(connection)
        log, sessions = make_sessions(engine, Keyring.generate())
        with sessions.begin() as session:
            session.add(Customer(id=2, name="second"))
        load = Load(log, engine)
        for _ in range(2):
            load.enough.clear()
            load.receipts.clear()
            threads = load.run(4)
            load.enough.wait()
            server.kill9()
            for thread in threads:
                thread.join()
            engine.dispose()
            server.restart()

            assert len(load.receipts) >= 60
            with engine.connect() as connection:
                logged = {(e.entry_id, e.aggregate): e for e in log.read(connection)}
            for receipt in load.receipts:
                entry = logged[receipt.entry_id, receipt.aggregate]
                assert (entry.aggregate, entry.version, entry.entry_hash) == (
                    receipt.aggregate,
                    receipt.version,
                    receipt.entry_hash,
                )
            check(engine, log)
        unexpected = [f for f in load.failures if not isinstance(f, DBAPIError | CommitError)]
        assert unexpected == []
        with sessions.begin() as session:  # and it goes on
            session.get_one(Customer, 1).name = "again"
        check(engine, log)
        engine.dispose()
