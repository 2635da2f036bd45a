"""Who is named as being in the way: sessions of the own database, and of no other.

A database made from a template has relations with the same ids, and every database of a server
shows its locks to all: an operator must not be sent after an innocent session.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, create_engine
from sqlalchemy.orm import sessionmaker

from oplog import Outcome
from oplog.errors import CommitOutcomeUnknownError
from tests.concurrency.workload import Base, make_log
from tests.fault.lost_commits import COMMIT, Bench, commit_async, open_bench, write_new
from tests.fault.proxy import Fault
from tests.support import administer

pytestmark = [pytest.mark.postgres, pytest.mark.fault]


@pytest.fixture
def bench(database_url: URL) -> Iterator[Bench]:
    with open_bench(database_url) as bench:
        yield bench


@pytest.fixture
def twin(server_url: URL, template: str) -> Iterator[Engine]:
    """Another database with a log, made from the same template."""
    name = f"oplog_twin_{uuid4().hex[:12]}"
    administer(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    engine = create_engine(server_url.set(database=name))
    yield engine
    engine.dispose()
    administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def test_an_append_of_another_database_is_not_in_the_way(bench: Bench, twin: Engine) -> None:
    async with bench.open_async_sessions(apart=True) as sessions:
        bench.plan(Fault.HOLD_REQUEST, at=COMMIT)
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            await commit_async(sessions, 1, work=write_new)
        with twin.begin() as other:
            other.execute(sa.text("LOCK TABLE oplog.oplog_outcome IN ROW EXCLUSIVE MODE"))
            resolution = bench.log.inquire(caught.value, bench.engine, wait_seconds=0.1)
        assert resolution.outcome is Outcome.PENDING
        found = [blocker.process_id for blocker in resolution.blockers]
        assert found == [caught.value.receipts[0].process_id]


def test_a_key_of_another_database_is_not_in_the_way(bench: Bench, twin: Engine) -> None:
    Base.metadata.create_all(twin)
    elsewhere = make_log()
    others = sessionmaker(twin)
    elsewhere.attach(others)
    with bench.open_sessions() as sessions, sessions() as holder, others() as other:
        elsewhere.annotate(other, idempotency_key="k")
        bench.log.annotate(holder, idempotency_key="k")
        process_id = holder.scalars(sa.text("SELECT pg_backend_pid()")).one()
        resolution = bench.log.inquire("k", bench.engine, wait_seconds=0.1)
        assert resolution.outcome is Outcome.PENDING
        assert [blocker.process_id for blocker in resolution.blockers] == [process_id]
