"""Pruning killed at any moment has removed whole batches or nothing, and is simply run again.

A partition that is dropped goes with its batch.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Oplog, VerifyReport, open_archive
from oplog.upkeep.prune import PruneStep
from tests.concurrency.workload import Base, Customer, Invoice, make_log
from tests.partitioned import list_firsts, shrink_partitions

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]
POINTS = [f"{batch} {step.value}" for batch in (0, 2) for step in PruneStep]


@pytest.fixture(params=[None, 8], ids=["rows", "partitions"])
def positions(request: pytest.FixtureRequest) -> int | None:
    """How many a partition has; None for far more than are used."""
    found: int | None = request.param
    return found


@pytest.fixture
def log(engine: Engine, positions: int | None) -> Oplog:
    Base.metadata.create_all(engine)
    if positions is not None:
        shrink_partitions(engine, positions)
    log = make_log()
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.add(Customer(id=1, name="first"))
    for number in range(20):
        log.maintain(engine)
        with sessions.begin() as session:
            log.annotate(session, idempotency_key=f"request {number}", actor="ann")
            session.add(Invoice(id=number, customer_id=1, amount=number))
            session.flush()
            session.get_one(Customer, 1).name = str(number)
    return log


def run(engine: Engine, url: str, point: str) -> subprocess.CompletedProcess[str]:
    database = engine.url.render_as_string(hide_password=False)
    return subprocess.run(
        [sys.executable, "-m", "tests.fault.pruning_process", database, url, point],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )


def ask(log: Oplog, engine: Engine, url: str) -> tuple[VerifyReport, list[object]]:
    """The verdict, which is good, and every used key's receipts."""
    with engine.connect() as connection:
        verdict = log.verify(connection, archive=open_archive(url))
        assert verdict.ok
    return verdict, [log.inquire(f"request {n}", engine).receipts for n in range(20)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_prune_is_run_again(
    engine: Engine, tmp_path: Path, log: Oplog, point: str, positions: int | None
) -> None:
    url = f"file://{tmp_path}/archive"
    # Segments of three records: a partition goes with three of them.
    exporter = log.make_exporter(open_archive(url), page_entries=6)
    total = exporter.publish_all(engine).entries
    partitions = list_firsts(engine)
    before = ask(log, engine, url)
    assert run(engine, url, point).returncode == -signal.SIGKILL
    with engine.connect() as connection:
        gone = connection.exec_driver_sql(
            "SELECT coalesce(max(entries), 0) FROM oplog.oplog_pruned"
        )
        batch, step = point.split()
        done = int(batch) + (step == PruneStep.COMMITTED)
        assert (gone.scalar_one() > 0) == (done > 0)
        marks = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_pruned").scalar_one()
        assert marks == done
        if positions is not None:
            assert list_firsts(engine) == partitions[min(done, 2) :]
        assert log.store.list_broken_links(connection) == []
    assert ask(log, engine, url) == before
    finished = run(engine, url, "none")
    assert (finished.returncode, finished.stdout.strip()) == (0, str(total))
    assert ask(log, engine, url) == before
    with engine.connect() as connection:
        assert list(log.read(connection)) == []
    assert list_firsts(engine) == (partitions if positions is None else partitions[2:])
