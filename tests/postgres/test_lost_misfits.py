"""Lost transactions of which some fit what is there now, and others would overwrite it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog import Archive, EntriesDrafted, Oplog, ReplayLostReport
from oplog.errors import ConfigurationError
from tests.postgres.archived import open_memory, reopen, restore_into
from tests.postgres.replay_models import Account, Bench, Owner, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres

Work = Callable[[Session], object]
CASCADE = (
    "ALTER TABLE account DROP CONSTRAINT account_owner_id_fkey, "
    "ADD FOREIGN KEY (owner_id) REFERENCES owner ON DELETE CASCADE"
)


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def open_account(number: int, balance: int) -> Work:
    return lambda session: session.add(Account(id=number, owner_id=1, balance=Decimal(balance)))


def pay(number: int, balance: int) -> Work:
    def work(session: Session) -> None:
        session.get_one(Account, number).balance = Decimal(balance)

    return work


def close(number: int) -> Work:
    return lambda session: session.delete(session.get_one(Account, number))


def add_owner(name: str) -> Work:
    return lambda session: session.add(Owner(name=name))


def remove_owner(number: int) -> Work:
    return lambda session: session.execute(sa.delete(Owner).where(Owner.id == number))


def lose(bench: Bench, target: Bench, *, kept: Sequence[Work], lost: Sequence[Work]) -> Archive:
    """Publish both, and give the target what was kept."""
    archive = open_memory()
    for work in kept:
        bench.write(work)
    through = bench.last_position()
    for work in lost:
        bench.write(work)
    bench.log.sync(bench.engine, archive)
    restore_into(target, reopen(archive), through=through)
    return archive


def redo(target: Bench, archive: Archive, *, dry_run: bool = False) -> ReplayLostReport:
    return target.log.replay_lost(target.engine, reopen(archive), dry_run=dry_run)


def balances(target: Bench) -> dict[int, int]:
    with target.sessions() as session:
        return {one.id: int(one.balance) for one in session.query(Account)}


def refused(report: ReplayLostReport) -> dict[int, str]:
    return {one.sequence: one.reason for one in report.refused}


def check(target: Bench) -> None:
    with target.engine.connect() as connection:
        assert target.log.verify(connection).ok


def test_what_was_written_since_is_not_overwritten(bench: Bench, target: Bench) -> None:
    archive = lose(
        bench,
        target,
        kept=[add_owner("ann"), open_account(3, 100), open_account(4, 100)],
        lost=[pay(3, 1), pay(4, 2)],
    )
    target.write(pay(3, 555))
    report = redo(target, archive)
    assert balances(target) == {3: 555, 4: 2}
    assert report.replayed == 1
    assert list(refused(report)) == [4]
    assert "aggregate 'account/3': version 2 was written since" in refused(report)[4]
    check(target)


def test_a_refusal_says_who_wrote_what_and_when(bench: Bench, target: Bench) -> None:
    archive = lose(
        bench, target, kept=[add_owner("ann"), open_account(3, 100)], lost=[pay(3, 1), pay(3, 2)]
    )
    with target.sessions.begin() as session:
        target.log.annotate(session, actor="teller")
        pay(3, 555)(session)
    (receipt,) = target.log.receipts(session)
    (first, second) = redo(target, archive).refused
    (conflict,) = first.conflicts
    assert (conflict.aggregate, conflict.version) == ("account/3", receipt.version)
    assert conflict.metadata == {"actor": ["teller"]}
    assert conflict.columns == {"account": ["balance"]}
    with target.engine.connect() as connection:
        (entry,) = target.log.read(connection, metadata={"actor": "teller"})
    assert conflict.recorded_at == entry.recorded_at
    # The second one goes on from the first: nothing was written after what it found, but that.
    assert second.conflicts == ()
    assert json.dumps(first.to_json())


def test_what_was_written_since_is_overwritten_if_told(bench: Bench, target: Bench) -> None:
    archive = lose(
        bench,
        target,
        kept=[add_owner("ann"), open_account(3, 100), open_account(4, 100)],
        lost=[pay(3, 1), pay(4, 2), pay(3, 3)],
    )
    for number in (3, 4):
        target.write(pay(number, 555))
    assert redo(target, archive).replayed == 0
    foreseen = overwrite(target, archive, 4, dry_run=True)
    assert ([one.sequence for one in foreseen.refused], foreseen.replayed) == ([5], 2)
    assert balances(target) == {3: 555, 4: 555}
    report = overwrite(target, archive, 4)
    # What follows the one that was told follows it; the other one is as before.
    assert ([one.sequence for one in report.refused], report.replayed) == ([5], 2)
    assert balances(target) == {3: 3, 4: 555}
    # Once, however often it is told.
    assert overwrite(target, archive, 4, 5).refused == []
    assert balances(target) == {3: 3, 4: 2}
    check(target)


def test_overwriting_names_what_was_lost(bench: Bench, target: Bench) -> None:
    archive = lose(bench, target, kept=[add_owner("ann")], lost=[open_account(5, 10)])
    with pytest.raises(ConfigurationError, match="sequence 9 is not among the 1 that were lost"):
        overwrite(target, archive, 9)
    assert balances(target) == {}


def overwrite(
    target: Bench, archive: Archive, *sequences: int, dry_run: bool = False
) -> ReplayLostReport:
    return target.log.replay_lost(
        target.engine, reopen(archive), dry_run=dry_run, overwrite=sequences
    )


def test_a_row_that_was_made_since_is_left_alone(bench: Bench, target: Bench) -> None:
    archive = lose(
        bench, target, kept=[add_owner("ann")], lost=[open_account(5, 10), pay(5, 20), close(5)]
    )
    target.write(open_account(5, 77))
    report = redo(target, archive)
    assert balances(target) == {5: 77}
    assert list(refused(report)) == [2, 3, 4]
    assert "written since" in refused(report)[2]
    assert "goes on from sequence 2" in refused(report)[3]
    assert "goes on from sequence 3" in refused(report)[4]


def test_a_chain_of_lost_transactions_is_done_again_in_order(bench: Bench, target: Bench) -> None:
    archive = lose(
        bench,
        target,
        kept=[add_owner("ann"), open_account(1, 1)],
        lost=[open_account(2, 10), pay(2, 20), pay(1, 5), pay(2, 30), close(1)],
    )
    assert redo(target, archive).replayed == 5
    assert balances(target) == {2: 30}
    check(target)


def transfer(taken: int, given: int, amount: int) -> Work:
    def work(session: Session) -> None:
        session.get_one(Account, taken).balance -= amount
        session.get_one(Account, given).balance += amount

    return work


def test_transactions_over_several_aggregates_are_done_again_whole(
    bench: Bench, target: Bench
) -> None:
    archive = lose(
        bench,
        target,
        kept=[add_owner("ann"), open_account(1, 100), open_account(2, 100), open_account(3, 100)],
        lost=[transfer(1, 2, 10), pay(2, 7), transfer(3, 1, 5), pay(3, 1)],
    )
    assert redo(target, archive).replayed == 4
    assert balances(target) == {1: 95, 2: 7, 3: 1}
    check(target)


def test_of_several_aggregates_one_that_was_written_since_refuses_the_transaction(
    bench: Bench, target: Bench
) -> None:
    archive = lose(
        bench,
        target,
        kept=[add_owner("ann"), open_account(1, 100), open_account(2, 100), open_account(3, 100)],
        lost=[transfer(1, 2, 10), pay(2, 7), pay(3, 1), transfer(3, 1, 5)],
    )
    target.write(pay(1, 500))
    target.log.sync(target.engine, reopen(archive), fork="fork")
    foreseen = redo(target, archive, dry_run=True)
    report = redo(target, archive)
    assert report.replayed == 1
    assert list(refused(report)) == [5, 6, 8]
    assert "aggregate 'account/1': version 2 was written since" in refused(report)[5]
    # Its other account was not written by anybody: what follows there follows what is not done.
    assert "aggregate 'account/2': it goes on from sequence 5" in refused(report)[6]
    assert "aggregate 'account/1': it goes on from sequence 5" in refused(report)[8]
    assert balances(target) == {1: 500, 2: 100, 3: 1}
    assert foreseen == report
    check(target)


def test_a_second_run_goes_on_from_the_first_and_not_over_what_came_between(
    bench: Bench, target: Bench
) -> None:
    archive = lose(
        bench, target, kept=[add_owner("ann"), open_account(1, 1)], lost=[pay(1, 2), pay(1, 3)]
    )
    target.write(add_owner("bo"))
    # The first of both is done, then the process dies, and somebody pays.
    redo_first(target, archive)
    assert balances(target) == {1: 2}
    target.write(pay(1, 900))
    report = redo(target, archive)
    assert report.replayed == 1
    assert "written since" in refused(report)[4]
    assert balances(target) == {1: 900}
    again = redo(target, archive)
    assert (again.replayed, refused(again)) == (1, refused(report))


class DiedError(Exception):
    """What a process that dies cannot catch."""


def redo_first(target: Bench, archive: Archive) -> None:
    """Do the first of the lost transactions again, and die at the second."""
    drafted = 0

    def die(event: object) -> None:
        nonlocal drafted
        drafted += isinstance(event, EntriesDrafted)
        if drafted == 2:
            raise DiedError

    dying = Oplog(target.log.catalog, keyring=target.log.keyring, on_event=die)
    with pytest.raises(DiedError):
        dying.replay_lost(target.engine, reopen(archive))


def test_a_row_that_was_deleted_since_stays_deleted(bench: Bench, target: Bench) -> None:
    archive = lose(
        bench, target, kept=[add_owner("ann"), open_account(1, 1)], lost=[pay(1, 2), close(1)]
    )
    target.write(close(1))
    report = redo(target, archive)
    assert report.replayed == 0
    assert list(refused(report)) == [3, 4]
    assert balances(target) == {}


def test_a_cascade_does_not_take_rows_that_came_since(bench: Bench, target: Bench) -> None:
    for one in (bench, target):
        one.tamper(CASCADE)
    archive = lose(bench, target, kept=[add_owner("ann"), add_owner("bo")], lost=[remove_owner(1)])
    target.write(open_account(7, 70))
    report = redo(target, archive)
    assert balances(target) == {7: 70}
    assert "would also change rows of account" in refused(report)[3]
    check(target)


def test_a_dry_run_foresees_what_is_refused(bench: Bench, target: Bench) -> None:
    archive = lose(
        bench,
        target,
        kept=[add_owner("ann"), open_account(1, 1), open_account(2, 2)],
        lost=[pay(1, 10), pay(2, 20), pay(2, 21), pay(1, 11)],
    )
    target.write(pay(1, 5))
    target.log.sync(target.engine, reopen(archive), fork="fork")
    foreseen = redo(target, archive, dry_run=True)
    assert balances(target) == {1: 5, 2: 2}
    report = redo(target, archive)
    assert foreseen == report
    assert list(refused(report)) == [4, 7]
    assert balances(target) == {1: 5, 2: 21}
    assert redo(target, archive, dry_run=True) == report
