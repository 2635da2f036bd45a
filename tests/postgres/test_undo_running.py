"""Undo beside writers, with asyncio, from the command line, and of logs that lack something."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from oplog.errors import ConfigurationError, PrunedError, StalePlanError, UndoError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.postgres.archived import open_memory, reopen
from tests.postgres.poison import Forger
from tests.postgres.pruned import prune, sync
from tests.postgres.replay_models import Task, make_bench
from tests.postgres.shop import open_shop
from tests.postgres.test_undo import add_account, set_account, state, write

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=True, seed="", aggregates=AGGREGATES)


async def test_with_asyncio(db: LoggedDatabase, database_url: URL) -> None:
    made = write(db, add_account(1))
    changed = write(db, set_account(1, owner="B"))
    after = state(db)
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine)
    db.log.attach(sessions)
    async with sessions() as session:
        plan = await session.run_sync(lambda s: db.log.plan_undo(s, records=changed))
        stale = await session.run_sync(lambda s: db.log.plan_undo(s, records=made))
    (receipt,) = await db.log.undo_async(sessions, plan, reason="async")
    assert state(db)["account"][0]["owner"] == "owner 1"
    with pytest.raises(StalePlanError):
        await db.log.undo_async(sessions, stale)
    async with engine.connect() as connection:
        back = await connection.run_sync(lambda c: db.log.plan_undo(c, records=receipt))
    await db.log.undo_async(sessions, back)
    assert state(db) == after
    await engine.dispose()
    db.assert_replays()


class Beside:
    """One thread counts in a column, the other marks the same rows and undoes that."""

    rounds = 40

    def __init__(self, db: LoggedDatabase) -> None:
        self.db = db
        self.undone = 0
        self.stop = threading.Event()
        self.failures: list[BaseException] = []

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._keep_failure, args=(work,))
            for work in (self.count, self.undo)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _keep_failure(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.failures.append(error)
            raise
        finally:
            self.stop.set()

    def count(self) -> None:
        def work(session: Any) -> None:
            for number in range(1, 4):
                account = session.get_one(Account, number, with_for_update=True)
                account.balance += 1

        for _ in range(self.rounds):
            self.db.log.run(self.db.sessions, work, retries=500)

    def undo(self) -> None:
        log, sessions = self.db.log, self.db.sessions
        while not (self.stop.is_set() and self.undone):
            receipts = log.run(sessions, mark, retries=500, idempotency_key=f"mark {self.undone}")
            while True:
                plan = log.plan_undo(self.db.engine, records=receipts)
                assert not plan.conflicts, plan.preview()
                try:
                    log.undo(sessions, plan, retries=500)
                except StalePlanError:
                    continue
                break
            self.undone += 1


def mark(session: Any) -> None:
    for number in range(1, 4):
        session.get_one(Account, number).owner = "marked"


def test_no_change_of_a_concurrent_writer_is_lost(db: LoggedDatabase) -> None:
    for number in range(1, 4):
        write(db, add_account(number, balance=0))
    beside = Beside(db)
    beside.run()
    assert not beside.failures
    rows = state(db)["account"]
    assert [(row["owner"], int(row["balance"])) for row in rows] == [
        (f"owner {number}", beside.rounds) for number in range(1, 4)
    ]
    db.assert_replays()


def test_writer_that_commits_while_the_undo_waits_for_its_row(db: LoggedDatabase) -> None:
    write(db, add_account(1))
    changed = write(db, set_account(1, owner="B"))
    plan = db.log.plan_undo(db.engine, records=changed)
    caught: list[BaseException] = []

    def undo() -> None:
        try:
            db.log.undo(db.sessions, plan)
        except StalePlanError as error:
            caught.append(error)

    with db.sessions.begin() as session:
        session.get_one(Account, 1).owner = "C"
        session.flush()
        waiting = threading.Thread(target=undo)
        waiting.start()
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for _ in range(10_000):
                blocked = connection.exec_driver_sql(
                    "SELECT count(*), pg_sleep(0.002) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                ).one()[0]
                if blocked:
                    break
            else:
                raise AssertionError("the undo never waited")
    waiting.join()
    assert len(caught) == 1
    assert state(db)["account"][0]["owner"] == "C"
    db.assert_replays()


def test_lock_steps_of_a_plan_hold_in_repeatable_read(db: LoggedDatabase) -> None:
    write(db, add_account(1))
    changed = write(db, set_account(1, owner="B"))
    strict = sa.orm.sessionmaker(db.engine.execution_options(isolation_level="SERIALIZABLE"))
    db.log.attach(strict)
    assert db.log.undo(strict, db.log.plan_undo(db.engine, records=changed))
    assert state(db)["account"][0]["owner"] == "owner 1"


def test_many_records_are_named_and_found(db: LoggedDatabase) -> None:
    write(db, add_account(1, balance=0))
    positions = [write(db, set_account(1, balance=n), actor="ada") for n in range(1, 131)]
    plan = db.log.plan_undo(db.engine, metadata={"actor": "ada"})
    assert [note.position for note in plan.records] == positions
    db.log.undo(db.sessions, plan)
    assert int(state(db)["account"][0]["balance"]) == 0
    entry = db.read()[-1]
    assert entry.metadata["undoes"] == [str(at) for at in positions[:100]]
    again = db.log.plan_undo(db.engine, records=positions[-1])
    assert (len(again.writes), again.conflicts, again.already) == (0, (), 1)


def test_false_claim_to_have_undone_is_not_believed(db: LoggedDatabase) -> None:
    write(db, add_account(1))
    ours = write(db, set_account(1, owner="B"))
    write(db, set_account(1, owner="C"), undoes=str(ours))
    (conflict,) = db.log.plan_undo(db.engine, records=ours).conflicts
    assert (conflict.column, conflict.now, conflict.wanted) == ("owner", "C", "owner 1")


def test_pruned_log_needs_its_archive(engine: Engine) -> None:
    bench = make_bench(engine)
    bench.write(lambda s: s.add(Task(id=1, project="p", title="a")))
    bench.write(lambda s: setattr(s.get_one(Task, 1), "title", "b"))
    archive = open_memory()
    sync(bench, archive)
    with bench.engine.connect() as connection:
        last = [entry.position for entry in bench.log.read(connection)][-1]
    prune(bench, archive)
    with pytest.raises(PrunedError):
        bench.log.plan_undo(bench.engine, records=last)
    plan = bench.log.plan_undo(bench.engine, records=last, archive=reopen(archive))
    assert [write.describe() for write in plan.writes] == [
        "update public.task (id=1): title 'b' -> 'a'"
    ]
    assert bench.log.undo(bench.sessions, plan, archive=reopen(archive))


@pytest.mark.filterwarnings("ignore::oplog.errors.QuarantineWarning")
def test_quarantined_record(engine: Engine) -> None:
    bench = make_bench(engine)
    bench.write(lambda s: s.add(Task(id=1, project="p", title="a")))
    position = Forger(bench).seal(b"nothing that can be read")
    with bench.engine.connect() as connection, connection.begin():
        bench.log.quarantine(connection, position, reason="forged")
    with pytest.raises(UndoError, match=r"cannot be read: .*forged"):
        bench.log.plan_undo(bench.engine, records=position)


def test_from_the_command_line(tmp_path: Path, database_url: URL) -> None:
    shop = open_shop(tmp_path, database_url)
    shop.fill()
    document = shop.ask("tail", "-n", "0")
    last = document[-1]
    out, _ = shop.call("undo", "--record", last["entry_id"], "--dry-run")
    assert out.startswith("undo of 1 record: ")
    told = shop.ask("undo", "--position", str(last["position"]), "--reason", "wrong")
    assert told["done"]
    assert told["receipts"]
    newest = shop.ask("tail", "-n", "1")[0]
    assert newest["metadata"]["undoes"] == [str(last["position"])]
    assert newest["metadata"]["reason"] == ["wrong"]
    assert shop.ask("verify")["ok"]


def test_sessions_that_are_not_logged_are_refused(engine: Engine) -> None:
    db = open_logged(engine, Base, seed="", aggregates=AGGREGATES)
    write(db, add_account(1))
    changed = write(db, set_account(1, owner="B"))
    plan = db.log.plan_undo(db.engine, records=changed)
    before = state(db)
    with pytest.raises(ConfigurationError, match="not attached"):
        db.log.undo(sa.orm.sessionmaker(db.engine.execution_options()), plan)
    other = sa.create_engine(db.engine.url)
    with pytest.raises(ConfigurationError, match="attach"):
        db.log.undo(sa.orm.sessionmaker(other), plan)
    other.dispose()
    assert state(db) == before
