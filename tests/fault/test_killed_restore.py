"""A restore killed at any moment leaves an empty, marked database, and is simply run again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import SchemaVersionError
from oplog.recovery.restore import RestoreStep
from tests.concurrency.workload import Base, Customer, Invoice
from tests.logged import track
from tests.postgres.restored import describe_tables, dump_log
from tests.support import assert_replays

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]
POINTS = [*(step.value for step in RestoreStep), "page 0", "page 7"]
"""All but the last steps lie before COMMIT."""


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    return path


@pytest.fixture
def log(engine: Engine, keyring: Path) -> Oplog:
    Base.metadata.create_all(engine)
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file(keyring))
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.add(Customer(id=1, name="first"))
    for number in range(30):
        with sessions.begin() as session:
            session.add(Invoice(id=number, customer_id=1, amount=number))
            session.get_one(Customer, 1).name = str(number)
    return log


def run(source: Engine, target: Engine, keyring: Path, point: str) -> subprocess.Popen[str]:
    urls = [engine.url.render_as_string(hide_password=False) for engine in (source, target)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.restoring_process", *urls, str(keyring), point],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    with process:
        process.wait()
    return process


def describe(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        rows = [
            connection.exec_driver_sql(f"SELECT count(*) FROM {t}").scalar()
            for t in Base.metadata.tables
        ]
        return [rows, dump_log(connection), describe_tables(connection)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_restore_is_run_again(
    engine: Engine, spare_engine: Engine, keyring: Path, log: Oplog, point: str
) -> None:
    Base.metadata.create_all(spare_engine)
    track(spare_engine, *Base.metadata.sorted_tables)
    before = describe(spare_engine)
    assert run(engine, spare_engine, keyring, point).returncode == -signal.SIGKILL
    restored = Oplog(log.catalog, keyring=log.keyring)
    sessions = sessionmaker(spare_engine)
    restored.attach(sessions)
    with (
        pytest.raises(SchemaVersionError, match="being restored"),
        sessions.begin() as session,
    ):
        session.add(Customer(id=5, name="too early"))
    # But for the mark it is as if nothing had happened.
    after = describe(spare_engine)
    marked = [("comment", "oplog.oplog_record", "", "oplog schema version 1, being restored")]
    assert [row for row in after[2] if row not in before[2]] == marked  # type: ignore[attr-defined,operator]
    assert after[:2] == before[:2]
    assert run(engine, spare_engine, keyring, "none").returncode == 0
    assert_replays(restored, spare_engine)
    with engine.connect() as here, spare_engine.connect() as there:
        assert dump_log(there) == dump_log(here)
    with sessions.begin() as session:
        session.add(Customer(id=5, name="now"))
    assert_replays(restored, spare_engine)
